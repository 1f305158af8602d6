"""SMART: tasks by greedy on a submodular function of their prompts' embeddings.

Source: Renduchintala, Bhatia and Ramakrishnan (2024), "SMART: Submodular data mixture strategy for
instruction tuning", arXiv 2403.08370.
"""

from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.inputs import ArrayLike, as_float64, as_symmetric


class Greedy(NamedTuple):
    """The tasks in the order in which greedy took them, and what each added to the function."""

    order: Int[np.ndarray, "k"]
    gains: Float[np.ndarray, "k"]


def cosine_similarity(embeddings: Annotated[ArrayLike, "n d"]) -> Float[np.ndarray, "n n"]:
    """Of the mean prompt embeddings, one row a task."""
    x = as_float64(embeddings, "embeddings")
    norms = np.linalg.norm(x, axis=-1, keepdims=True)
    if x.ndim != 2 or (norms == 0).any():
        raise ValueError("embeddings have to be [n, d] with no row of zeros")
    s = (x / norms) @ (x / norms).T
    return 0.5 * (s + s.T)


def facility_location(similarity: Annotated[ArrayLike, "n n"], k: int) -> Greedy:
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


def graph_cut(
    similarity: Annotated[ArrayLike, "n n"], k: int, *, trade: float | int = 0.4
) -> Greedy:
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


def smart(
    embeddings: Annotated[ArrayLike, "n d"], k: int, *, function: str = "facility location"
) -> Float[np.ndarray, "n"]:
    """p_i ~ 1 + g_i + g_i^2 / 2 over the k tasks that greedy takes, g_i their gains.

    The paper's settings: facility location for the choice of tasks (graph cut is its other
    function); their sizes cap what they get when the weights become counts, see `allocate`.

    Args:
      embeddings: mean prompt embedding of each task.
      function: "facility location" or "graph cut".

    >>> smart([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]], k=2).round(2)
    array([0. , 0.7, 0.3])
    """
    functions = {"facility location": facility_location, "graph cut": graph_cut}
    if function not in functions:
        raise ValueError(f"function={function!r} is none of {', '.join(functions)}")
    chosen = functions[function](cosine_similarity(embeddings), k)
    share = 1 + chosen.gains + chosen.gains**2 / 2
    weights = np.zeros(len(np.asarray(embeddings)))
    weights[chosen.order] = share / share.sum()
    return weights


def _checked(k: int, n: int) -> int:
    if k != int(k) or not 1 <= k <= n:
        raise ValueError(f"k={k} has to be a whole number from 1 to n = {n}")
    return int(k)
