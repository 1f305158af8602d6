"""Every task the same."""

import numpy as np
from jaxtyping import Float


def uniform(n: int) -> Float[np.ndarray, "n"]:
    """p = 1/n for each of `n` tasks."""
    if n < 1:
        raise ValueError(f"n={n} tasks: there has to be at least 1")
    return np.full(n, 1.0 / n)
