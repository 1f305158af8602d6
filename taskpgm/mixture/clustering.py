"""A row order that puts like tasks side by side: hierarchical clustering, in numpy alone."""

import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.inputs import as_symmetric


def order_rows(affinity: Float[np.ndarray, "n n"]) -> Int[np.ndarray, "n"]:
    """Leaves of the average-linkage dendrogram, each branch turned so that neighbours are alike.

    Distances are (S_ii + S_jj)/2 - S_ij; average linkage does not mind a constant added to all of
    them, so negative ones are fine. Nearest-neighbour chain (Murtagh 1983): O(n^2).
    """
    s = as_symmetric(affinity, "affinity")
    n = len(s)
    near = 0.5 * (np.diag(s)[:, None] + np.diag(s)[None, :]) - s
    between = near.copy()
    np.fill_diagonal(between, np.inf)
    leaves = {i: [i] for i in range(n)}
    weight = np.ones(n)
    alive = np.ones(n, bool)
    chain: list[int] = []
    while len(leaves) > 1:
        if not chain:
            chain.append(min(leaves))
        last = chain[-1]
        row = np.where(alive, between[last], np.inf)
        best = int(np.argmin(row))
        # On a tie with the one before, the chain turns back, or it would never end.
        if len(chain) > 1 and row[chain[-2]] <= row[best]:
            a, b = chain.pop(), chain.pop()
            share = weight[a] / (weight[a] + weight[b])
            merged = share * between[a] + (1 - share) * between[b]
            leaves[a] = _join(leaves[a], leaves.pop(b), near)
            weight[a] += weight[b]
            alive[b] = False
            between[a], between[:, a] = merged, merged
            between[a, a] = np.inf
        else:
            chain.append(best)
    return np.array(next(iter(leaves.values())), np.int64)


def _join(a: list[int], b: list[int], near: Float[np.ndarray, "n n"]) -> list[int]:
    """The two branches in the orientation whose meeting leaves are nearest."""
    turns = [(x, y) for x in (a, a[::-1]) for y in (b, b[::-1])]
    left, right = min(turns, key=lambda t: near[t[0][-1], t[1][0]])
    return left + right
