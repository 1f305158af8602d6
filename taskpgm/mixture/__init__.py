"""What to mix: from an affinity matrix to certified mixture weights. Needs jax and numpy alone.

    energy = energy_from_affinity(affinity, ratio=2.0)
    solution = solve_exact(energy)
    counts = allocate(solution.weights, budget=25_000, sizes=sizes)
"""

from taskpgm.mixture.allocate import allocate
from taskpgm.mixture.energy import Energy, energy_from_affinity
from taskpgm.mixture.explain import Explanation, effective_tasks, explain
from taskpgm.mixture.simplex import project_simplex
from taskpgm.mixture.solve import Solution, solve_closed_form, solve_exact

__all__ = [
    "Energy",
    "Explanation",
    "Solution",
    "allocate",
    "effective_tasks",
    "energy_from_affinity",
    "explain",
    "project_simplex",
    "solve_closed_form",
    "solve_exact",
]
