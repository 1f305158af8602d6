"""Whether k tasks can meet bounds: what a selection has to look ahead to."""

from typing import Annotated

import numpy as np
from jaxtyping import Bool

from taskpgm.mixture.bounds import Bounds, as_arrays
from taskpgm.mixture.inputs import ArrayLike
from taskpgm.mixture.solve import as_cap


class Room:
    """The bounds as a selection of k of n tasks meets them.

    Attributes:
      high: largest weight of each task, [n].
      required: tasks that must have weight, [n].
    """

    def __init__(
        self,
        n: int,
        k: int,
        cap: Annotated[ArrayLike, "n"] | None,
        bounds: Bounds | None,
    ) -> None:
        low, high, family = as_arrays(bounds, n, as_cap(cap, n))
        self.high, self.required = high[:n], low[:n] > 0
        self.slack = 1e-12 * n
        # Without families all tasks are one, without bounds of its own.
        self.family = family if len(family) else np.zeros(n, np.int64)
        self.least = np.maximum(low[n:], 0.0) if len(family) else np.zeros(1)
        self.most = high[n:] if len(family) else np.full(1, np.inf)
        nobody = np.zeros(n, bool)
        if self.required.sum() > k:
            raise ValueError(
                f"k={k}: {self.required.sum()} tasks have a least weight above 0 in the bounds; "
                "raise k"
            )
        if not self._reaches(nobody, k):
            raise ValueError(f"k={k}: no {k} tasks can meet the bounds and caps; raise k")

    def suffices(self, chosen: Bool[np.ndarray, "n"], task: int, more: int) -> bool:
        """Whether the chosen tasks, this one and some `more` of the others can meet the bounds."""
        with_it = chosen.copy()
        with_it[task] = True
        return self._reaches(with_it, more)

    def _reaches(self, chosen: Bool[np.ndarray, "n"], more: int) -> bool:
        """Exact: what the largest tasks of a family add to its sum shrinks from each to the next,
        so the best `more` tasks are found one by one."""
        taken = chosen | self.required
        more -= int((self.required & ~chosen).sum())
        sums = np.bincount(self.family, np.where(taken, self.high, 0.0), len(self.least))
        order = np.flatnonzero(~taken)[np.argsort(-self.high[~taken], kind="stable")]
        gains = []
        for i in order:
            g, before = self.family[i], sums[self.family[i]]
            sums[g] = before + self.high[i]
            if before < self.least[g] - self.slack:
                more -= 1  # the family needs it
            else:
                gains.append(min(sums[g], self.most[g]) - min(before, self.most[g]))
        if more < 0:
            return False
        total = np.minimum(sums, self.most).sum() - sum(gains)
        return bool(total + sum(sorted(gains, reverse=True)[:more]) >= 1 - self.slack)


def check_selection(
    n: int,
    k: int,
    cap: Annotated[ArrayLike, "n"] | None = None,
    bounds: Bounds | None = None,
) -> None:
    """ValueError unless some k of n tasks can meet caps and bounds; k = n asks for any mixture.

    >>> check_selection(3, 1, cap=[0.5, 1.0, 0.2])  # the second task alone will do
    """
    Room(n, k, cap, bounds)
