"""A hundred kills: `python -m tests.soak [KILLS] [SEED]`.

Trainings of `tests.soak.kills`, killed at random events and at random moments, have to end as if nothing had
happened. Exit status 1 if one does not."""
import itertools
import sys
import tempfile
from .kills import METHODS, TRAININGS, Runs, differing

def soak(kills, seed):
    "Kill and compare until so many processes have died; how many endings were different"
    bad, wholes = 0, {}
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(f'{folder}/runs', seed)
        for i in itertools.count():
            if runs.kills >= kills: return bad
            training, method = runs.rng.choice([*TRAININGS]), runs.rng.choice([*METHODS])
            if (training, method) not in wholes: wholes[training, method] = runs.whole(training, method)
            every = runs.rng.choice([None, 0, 1e-3])            # minutes
            ending = runs.killed(training, method, every, 4, by_clock=.5)
            found = differing(wholes[training, method], ending)
            bad += bool(found)
            print(f'{runs.kills:4} kills: {training}, {method}, every {every}: '
                  f'{f"DIFFERENT in {found} after {runs.log}" if found else "the same"}', flush=True)

if __name__ == '__main__':
    given = [int(a) for a in sys.argv[1:]]
    kills, seed = [*given, *[100, 0][len(given):]]
    bad = soak(kills, seed)
    print(f'{kills} kills, {bad} different')
    sys.exit(bad > 0)
