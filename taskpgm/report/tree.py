"""The tree beside a heat map, from the matrix in the order of its clustering."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Merge(NamedTuple):
    """A bracket: two branches (where they stand, how high they begin) that meet at a height."""

    places: tuple[float, float]
    begins: tuple[float, float]
    height: float


def merges(ordered: Float[np.ndarray, "n n"]) -> list[Merge]:
    """Average-linkage merges of a matrix whose rows are in the order of that clustering.

    In such an order every cluster is a run of rows, so the next pair to merge are neighbours: it is
    enough to compare those. Heights are mean distances, 0 for the most alike pair of rows. A
    branch stands at the middle of its own two branches, a row at its number.
    """
    n = len(ordered)
    if n < 2:
        return []
    distance = (np.diag(ordered)[:, None] + np.diag(ordered)) / 2 - (ordered + ordered.T) / 2
    distance -= distance[~np.eye(n, dtype=bool)].min()
    total = np.zeros((n + 1, n + 1))
    total[1:, 1:] = distance.cumsum(0).cumsum(1)  # of the rectangle above and to the left

    edges = list(range(n + 1))  # clusters are the rows from one edge to the next
    place, height = [float(i) for i in range(n)], [0.0] * n
    found = []
    while len(place) > 1:
        e = np.array(edges)
        a, b, c = e[:-2], e[1:-1], e[2:]
        between = total[b, c] - total[a, c] - total[b, b] + total[a, b]
        mean = between / ((b - a) * (c - b))
        k = int(mean.argmin())
        at = max(float(mean[k]), height[k], height[k + 1])  # rounding must not turn it around
        found.append(Merge((place[k], place[k + 1]), (height[k], height[k + 1]), at))
        place[k : k + 2], height[k : k + 2] = [(place[k] + place[k + 1]) / 2], [at]
        del edges[k + 1]
    return found
