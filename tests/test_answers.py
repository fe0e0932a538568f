"Which images were right: in order, in float32, and back from text bit by bit."
import pytest, torch
from hypothesis import given, strategies as st
from prunelab.lab.answers import answers, pack, tally, unpack

@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_what_is_packed_comes_back(bits):
    right = torch.tensor(bits)
    assert torch.equal(unpack(pack(right)), right)

EIGHT = pack(torch.ones(8, dtype=torch.bool)).partition(':')[2]

@pytest.mark.parametrize('text', ['', 'x', '8:', '8:!!', '8:eJxzAQAAOQA5', '9:' + EIGHT])
def test_what_was_not_packed_is_refused(text):
    with pytest.raises(ValueError, match='not a record of answers'): unpack(text)

def test_answers_are_those_of_every_example_in_order(new_learner):
    learn = new_learner()
    right = answers(learn.model, learn.dls.valid)
    ds = learn.dls.valid.dataset
    learn.model.eval()
    for i in (0, 17, len(ds) - 1):
        x, y = ds[i]
        assert right[i] == (learn.model(x[None].to(learn.dls.device)).argmax(1)[0] == y)
    assert tally(right)['n'] == len(ds) and tally(right)['right'] == round(learn.validate()[1]*len(ds))

def test_autocast_around_does_not_round_the_answers(new_learner):
    learn = new_learner()
    plain, dtypes = answers(learn.model, learn.dls.valid), []
    learn.model.register_forward_hook(lambda module, inputs, out: dtypes.append(out.dtype))
    with torch.autocast(learn.dls.device.type, torch.bfloat16): inside = answers(learn.model, learn.dls.valid)
    assert torch.equal(plain, inside) and set(dtypes) == {torch.float32}

def test_every_mode_is_what_it_was(new_learner):
    learn = new_learner()
    learn.model.train()
    learn.model[2].eval()
    modes = [m.training for m in learn.model.modules()]
    answers(learn.model, learn.dls.valid)
    assert [m.training for m in learn.model.modules()] == modes

def test_a_loader_that_shuffles_is_refused(new_learner):
    learn = new_learner()
    with pytest.raises(ValueError, match='in order'): answers(learn.model, learn.dls.train)
