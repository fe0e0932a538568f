"""How many examples a property is tried with: few and the same in `make test`, many and new in `make soak`.

`PRUNELAB_EXAMPLES=50` multiplies all counts by 50 and draws new examples each time."""
import os
from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get('PRUNELAB_EXAMPLES', 1))

def examples(n):
    "Settings of a property that is tried `n` times in `make test`"
    return settings(max_examples=n*TIMES, derandomize=TIMES == 1, deadline=None, database=None,
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large,
                                           HealthCheck.filter_too_much])
