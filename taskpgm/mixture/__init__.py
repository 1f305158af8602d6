"""What to mix: from an affinity matrix to certified mixture weights. Needs jax, numpy and scipy.

```python
energy = energy_from_affinity(affinity, ratio=2.0)
solution = solve_exact(energy)
counts = allocate(solution.weights, budget=25_000, sizes=sizes)
```

Matrices may be lists, numpy or jax arrays of any float type. Everything is computed in float64,
whatever JAX's default is, and comes back as numpy float64 (see `inputs`); only `project_simplex`
keeps the dtype of a jax array.
"""

from taskpgm.mixture.allocate import allocate
from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.clustering import linkage, order_rows
from taskpgm.mixture.energy import Energy, energy_from_affinity, make_positive_definite
from taskpgm.mixture.entropic import solve_entropic
from taskpgm.mixture.explain import Explanation, effective_tasks, explain
from taskpgm.mixture.path import Path, ratio_path
from taskpgm.mixture.ratio import ChosenRatio, choose_ratio
from taskpgm.mixture.resample import Resampled, bootstrap_weights
from taskpgm.mixture.room import check_selection
from taskpgm.mixture.select import Selection, select_greedy
from taskpgm.mixture.simplex import project_simplex
from taskpgm.mixture.solve import Solution, solve_closed_form, solve_exact
from taskpgm.mixture.worth import PredictedLoss

__all__ = [
    "Bounds",
    "ChosenRatio",
    "Energy",
    "Explanation",
    "Path",
    "PredictedLoss",
    "Resampled",
    "Selection",
    "Solution",
    "allocate",
    "bootstrap_weights",
    "check_selection",
    "choose_ratio",
    "effective_tasks",
    "energy_from_affinity",
    "explain",
    "linkage",
    "make_positive_definite",
    "order_rows",
    "project_simplex",
    "ratio_path",
    "select_greedy",
    "solve_closed_form",
    "solve_entropic",
    "solve_exact",
]
