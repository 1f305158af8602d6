"""The order of a matrix's rows by average-linkage clustering, so that families show as blocks."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Clustering(NamedTuple):
    """Leaves in drawing order, and the merges of the tree over positions in that order."""

    order: Int[np.ndarray, "n"]
    merges: tuple[tuple[float, float, float, float, float], ...]
    # each merge: (position left, position right, height left, height right, height of the merge)


def cluster(affinity: Float[np.ndarray, "n n"]) -> Clustering:
    """Average linkage (Sokal and Michener 1958) by the nearest-neighbour chain (Murtagh 1983).

    The distance of i and j is max S - S_ij over distinct tasks; O(n^2) time and memory. The two
    branches of a merge are turned so that the most similar of their ends touch.
    """
    n = len(affinity)
    if n == 1:
        return Clustering(np.zeros(1, int), ())
    symmetric = (affinity + affinity.T) / 2
    distance = symmetric[~np.eye(n, dtype=bool)].max() - symmetric
    linkage = distance.copy()
    np.fill_diagonal(linkage, np.inf)
    leaves = {i: [i] for i in range(n)}
    height = dict.fromkeys(range(n), 0.0)
    joined = []  # (ends of the left branch, of the right one, their heights, height)
    chain: list[int] = []
    while len(leaves) > 1:
        if not chain:
            chain = [min(leaves)]
        last = chain[-1]
        nearest = int(np.argmin(linkage[last]))
        if len(chain) > 1 and linkage[last, chain[-2]] <= linkage[last, nearest]:
            nearest = chain[-2]
        if len(chain) < 2 or nearest != chain[-2]:
            chain.append(nearest)
            continue
        del chain[-2:]
        a, b = sorted((last, nearest))
        at = float(linkage[a, b])
        left, right = _turned(leaves[a], leaves[b], distance)
        first = a if left[0] in leaves[a] else b
        second = b if first == a else a
        joined.append((left, right, height[first], height[second], at))
        sizes = len(leaves[a]), len(leaves[b])
        merged = (sizes[0] * linkage[a] + sizes[1] * linkage[b]) / sum(sizes)
        linkage[a], linkage[:, a] = merged, merged
        linkage[a, a] = np.inf
        linkage[b], linkage[:, b] = np.inf, np.inf
        leaves[a] = left + right
        height[a] = at
        del leaves[b], height[b]
    order = np.array(next(iter(leaves.values())))
    return Clustering(order, _placed(joined, order))


def _turned(
    a: list[int], b: list[int], distance: Float[np.ndarray, "n n"]
) -> tuple[list[int], list[int]]:
    """The two branches, swapped or reversed so that the ends that meet are the nearest."""
    choices = [(x, y) for x in (a, a[::-1]) for y in (b, b[::-1])]
    return min(choices, key=lambda pair: distance[pair[0][-1], pair[1][0]])


def _placed(joined: list, order: Int[np.ndarray, "n"]) -> tuple[tuple[float, ...], ...]:
    """Merges as brackets over the drawing positions: a branch stands at the middle of its own
    two branches, a leaf at its place."""
    place = {int(leaf): float(i) for i, leaf in enumerate(order)}
    middle: dict[frozenset[int], float] = {}
    merges = []
    for left, right, low_left, low_right, at in joined:
        ends = []
        for branch in (left, right):
            key = frozenset(branch)
            ends.append(middle.get(key, place[branch[0]]))
        low = low_left, low_right
        if ends[0] > ends[1]:
            ends, low = ends[::-1], low[::-1]
        middle[frozenset(left) | frozenset(right)] = sum(ends) / 2
        merges.append((ends[0], ends[1], low[0], low[1], at))
    return tuple(merges)
