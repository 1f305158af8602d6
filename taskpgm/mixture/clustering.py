"""A row order that puts like tasks side by side."""

from typing import Annotated

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster import hierarchy

from taskpgm.mixture.inputs import ArrayLike, as_symmetric


def linkage(affinity: Annotated[ArrayLike, "n n"]) -> Float[np.ndarray, "merges 4"]:
    """Average-linkage merges of the tasks in scipy's form, branches turned so that neighbours are
    alike (optimal leaf ordering). Distances are (S_ii + S_jj)/2 - S_ij, less the least of them.

    Raises:
      ValueError: fewer than 2 tasks, NaN or infinity, or no symmetric matrix.
    """
    s = as_symmetric(affinity, "affinity")
    if len(s) < 2:
        raise ValueError("a dendrogram needs at least 2 tasks")
    diagonal = np.diag(s)
    distance = 0.5 * (diagonal[:, None] + diagonal) - s
    condensed = distance[np.triu_indices(len(s), 1)]
    return hierarchy.linkage(condensed - condensed.min(), "average", optimal_ordering=True)


def order_rows(affinity: Annotated[ArrayLike, "n n"]) -> Int[np.ndarray, "n"]:
    """Leaves of the dendrogram of `linkage`, so that families show as blocks.

    >>> order_rows([[1.0, 0.0], [0.0, 1.0]])
    array([0, 1])
    """
    s = as_symmetric(affinity, "affinity")
    if len(s) < 2:
        return np.arange(len(s))
    return hierarchy.leaves_list(linkage(s)).astype(np.int64)
