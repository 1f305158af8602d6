"""Examples by chance, whatever their task."""

import numpy as np
from jaxtyping import Int

from taskpgm.mixture.inputs import as_vector


def random_instances(
    sizes: Int[np.ndarray, "n"], budget: int, *, seed: int = 0
) -> Int[np.ndarray, "n"]:
    """Counts of `budget` draws without replacement from the union of all tasks, int64 [n].

    Raises:
      ValueError: a budget beyond the union.
    """
    counts = as_vector(sizes, "sizes").astype(np.int64)
    if counts.ndim != 1 or (counts < 0).any():
        raise ValueError("sizes have to be one vector of numbers >= 0")
    if not 0 <= budget <= counts.sum():
        raise ValueError(f"budget={budget} has to lie in 0..{counts.sum()}, the union of the tasks")
    draw = np.random.default_rng(seed).multivariate_hypergeometric
    return draw(counts, int(budget), method="marginals")
