"""Chameleon: weight to the tasks that stand apart, by kernel ridge leverage scores.

Source: Xie, Tonin and Cevher (2025), arXiv 2505.24844, the weights for fine-tuning.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.inputs import ArrayLike, as_float64


def chameleon(
    embeddings: Annotated[ArrayLike, "n d"],
    *,
    ridge: float | int = 10.0,
    temperature: float | int = 0.2,
) -> Float[np.ndarray, "n"]:
    """p = softmax(s / temperature), s = diag(K (K + ridge n I)^-1) divided by its sum.

    K is the linear kernel of the centred task embeddings. The paper's settings are the defaults.

    >>> chameleon([[0.0, 1.0], [0.0, 1.0]])
    array([0.5, 0.5])
    """
    x = as_float64(embeddings, "embeddings")
    if x.ndim != 2 or len(x) < 1:
        raise ValueError(f"embeddings have shape {x.shape}: they have to be [n, d]")
    x = x - x.mean(0)
    kernel = x @ x.T
    n = len(x)
    scores = np.diag(np.linalg.solve(kernel + ridge * n * np.eye(n), kernel))
    total = scores.sum()
    # Tasks that are all alike have no scores to tell them apart.
    scores = scores / total if total > 0 else np.full(n, 1 / n)
    weights = np.exp((scores - scores.max()) / temperature)
    return weights / weights.sum()
