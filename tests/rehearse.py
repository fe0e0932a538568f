"What the tests of experiments share: the same code in seconds, and what must be alike within a block."
import json
import torch
from prunelab.lab.experiment import plain, rehearsal
from prunelab.lab.training import dense

def distinct(es):
    "Enough experiments to rehearse each network and each arm; the others differ in numbers or combine both"
    found, seen = [], set()
    for e in es:
        small = rehearsal(e)
        numbers = ('sparsity', 'epochs', 'lr', 'exclude')
        arm = {k: v for k, v in small.params.items() if k not in numbers or isinstance(v, dict)}
        some = bool(e.params['exclude'])
        news = {(e.run.__name__, small.recipe.network), json.dumps([some, arm], sort_keys=True)}
        if news - seen: found.append(e)
        seen |= news
    return found

def rehearse(e, cache):
    "The result of a tiny run; it is plain data, counts add up, and the dense network is as it was"
    e = rehearsal(e)
    net = dense(e.recipe, e.seeds[0], cache, 'cpu')
    before = {k: v.clone() for k, v in net.learn.model.state_dict().items()}
    r = e.run(net, e.seeds[0], **e.params)
    assert all(torch.equal(v, before[k]) for k, v in net.learn.model.state_dict().items())
    json.dumps(plain(r), allow_nan=False)
    n = len(net.learn.dls.test.dataset)
    for when in ('before', 'after'):
        if r.get(when) is None: continue
        assert r[when]['test']['n'] == n and r[when]['valid']['n'] == 200 and 'bits' in r[when]['test']
    return r

def blocks_of(es, key):
    "{key: experiments}"
    found = {}
    for e in es: found.setdefault(key(e), []).append(e)
    return found

def check_block(es):
    "One dense network, one length of training, one learning rate, the same seeds for all"
    assert len({json.dumps(e.recipe.identity, sort_keys=True) for e in es}) == 1
    assert len({(e.params['epochs'], e.params['lr'], e.seeds) for e in es if 'epochs' in e.params}) == 1
