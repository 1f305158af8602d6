"""Control: the row sums of the affinity alone, through a softmax."""

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.inputs import as_symmetric


def softmax_rows(
    affinity: Float[np.ndarray, "n n"], *, beta: float = 1.0
) -> Float[np.ndarray, "n"]:
    """p = softmax(beta * S 1): no redundancy, each task by itself.

    It is what the published belief propagation comes down to, and nearly one-hot at its settings.
    """
    scores = beta * as_symmetric(affinity, "affinity").sum(-1)
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
