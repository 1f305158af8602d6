"""Control: the same matrix with its tasks shuffled, so that no name fits its row."""

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.inputs import as_symmetric


def permuted_affinity(affinity: Float[np.ndarray, "n n"], *, seed: int = 0) -> np.ndarray:
    """S with rows and columns permuted alike: the spectrum stays, what it says of tasks goes.

    The permutation leaves no task in its place (where n > 1), or that part would be no control.
    """
    s = as_symmetric(affinity, "affinity")
    n = s.shape[-1]
    # A cycle through all tasks in a random order: uniform over the cyclic permutations.
    order = np.random.default_rng(seed).permutation(n)
    moved = np.empty(n, np.int64)
    moved[order] = np.roll(order, 1)
    return s[np.ix_(moved, moved)]
