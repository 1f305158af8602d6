"""SMART: tasks by greedy on a submodular function of their prompts' embeddings.

Source: Renduchintala, Bhatia and Ramakrishnan (2024), "SMART: Submodular data mixture strategy for
instruction tuning", arXiv 2403.08370.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.allocate import allocate
from taskpgm.mixture.inputs import as_float64, as_symmetric, as_vector


class Greedy(NamedTuple):
    """The tasks in the order greedy took them, and what each added to the function."""

    order: Int[np.ndarray, "k"]
    gains: Float[np.ndarray, "k"]


def cosine_similarity(embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n n"]:
    """Of the mean prompt embeddings, one row a task."""
    x = as_float64(embeddings, "embeddings")
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    if x.ndim != 2 or (norms == 0).any():
        raise ValueError("embeddings have to be [n, d] with no row of zeros")
    s = (x / norms) @ (x / norms).T
    return 0.5 * (s + s.T)


def facility_location(similarity: Float[np.ndarray, "n n"], k: int) -> Greedy:
    """Greedy on f(A) = sum over v of max over j in A of s_vj: every task near a chosen one."""
    s = as_symmetric(similarity, "similarity")
    covered = np.zeros(len(s))
    order, gains = [], []
    for _ in range(_checked(k, len(s))):
        # Taken from zero, as the maximum over the empty set is counted.
        added = np.maximum(s - covered[:, None], 0).sum(0)
        added[order] = -np.inf
        best = int(np.argmax(added))
        order.append(best)
        gains.append(float(added[best]))
        covered = np.maximum(covered, s[:, best])
    return Greedy(np.array(order), np.array(gains))


def graph_cut(similarity: Float[np.ndarray, "n n"], k: int, *, trade: float = 0.4) -> Greedy:
    """Greedy on f(A) = sum over V x A of s - trade * sum over A x A of s."""
    s = as_symmetric(similarity, "similarity")
    added = s.sum(0) - trade * np.diag(s)
    order, gains = [], []
    for _ in range(_checked(k, len(s))):
        left = added.copy()
        left[order] = -np.inf
        best = int(np.argmax(left))
        order.append(best)
        gains.append(float(added[best]))
        added = added - 2 * trade * s[best]
    return Greedy(np.array(order), np.array(gains))


def smart_counts(
    chosen: Greedy, budget: int, sizes: Int[np.ndarray, "n"], max_epochs: float = 1.0
) -> Int[np.ndarray, "n"]:
    """Examples a task: proportional to 1 + g + g^2 / 2 of the greedy gains g, capped at N_i."""
    sizes = as_vector(sizes, "sizes")
    share = 1 + chosen.gains + chosen.gains**2 / 2
    weights = np.zeros(len(sizes))
    weights[chosen.order] = share / share.sum()
    return allocate(weights, budget, sizes, max_epochs)


def _checked(k: int, n: int) -> int:
    if k != int(k) or not 1 <= k <= n:
        raise ValueError(f"k={k} has to be a whole number from 1 to n = {n}")
    return int(k)
