"""Which mixtures are allowed: smallest and largest weights of tasks, and of families."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.inputs import AnyArray, ArrayLike

SLACK = 1e-12  # per task: sums of bounds that miss 1 by this are rounding


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Bounds of the weights p. What is None or left out does not bind.

    Attributes:
      low, high: smallest and largest weight of each task, a number or [n].
      family: the family of each task, whole numbers 0..m-1, [n].
      family_low, family_high: smallest and largest sum of the weights of each family, a number or
        [m].
      tasks, families: names, for messages about bounds that no mixture can meet; else numbers.

    >>> bounds = Bounds(high=0.5, family=[0, 0, 1], family_high=[0.6, 1.0])
    """

    low: ArrayLike | None = None
    high: ArrayLike | None = None
    family: Annotated[ArrayLike, "n"] | None = None
    family_low: ArrayLike | None = None
    family_high: ArrayLike | None = None
    tasks: Sequence[str] | None = None
    families: Sequence[str] | None = None


def as_arrays(
    bounds: Bounds | None, n: int, cap: Float[AnyArray, "n"] | None = None
) -> tuple[Float[np.ndarray, "v"], Float[np.ndarray, "v"], Int[np.ndarray, "f"]]:
    """Lower and upper bounds of n weights and m family sums, and the families; checked.

    Args:
      cap: upper bounds beside those of `bounds`.
    Raises:
      ValueError: bounds of another size, or that no mixture can meet.
    """
    bounds = bounds or Bounds()
    low = _filled(bounds.low, n, 0.0, "low")
    high = _filled(bounds.high, n, 1.0, "high")
    low, high = (
        np.maximum(low, 0.0),
        np.minimum(high, 1.0 if cap is None else np.minimum(np.asarray(cap), 1.0)),
    )
    if bounds.family is None:
        if bounds.family_low is not None or bounds.family_high is not None:
            raise ValueError("bounds of families need `family`, the family of each task")
        _check(bounds, low, high, np.zeros(n, np.int64), np.zeros(1), np.ones(1))
        return low, high, np.zeros(0, np.int64)
    family = np.asarray(bounds.family)
    if family.shape != (n,) or family.dtype.kind not in "iu" or (family < 0).any():
        raise ValueError(f"family has to be {n} whole numbers >= 0, one for each task")
    family = family.astype(np.int64)
    count = int(family.max()) + 1
    family_low = _filled(bounds.family_low, count, 0.0, "family_low")
    family_high = _filled(bounds.family_high, count, 1.0, "family_high")
    most = np.minimum(family_high, 1.0)
    _check(bounds, low, high, family, np.maximum(family_low, 0.0), most)
    # A bound that cannot bind is none: fewer rows for the solver to watch.
    size = np.bincount(family, minlength=count)
    family_low = np.where(family_low > 0, family_low, -np.inf)
    family_high = np.where((family_high < 1) & (size > 0), family_high, np.inf)
    return np.append(low, family_low), np.append(high, family_high), family


def _filled(value: ArrayLike | None, size: int, default: float, name: str) -> np.ndarray:
    array = np.asarray(default if value is None else value, np.float64)
    if array.ndim > 1 or (array.ndim == 1 and len(array) != size):
        raise ValueError(f"{name} has shape {array.shape}: it has to be a number or {size} numbers")
    if np.isnan(array).any():
        raise ValueError(f"{name} has a NaN: every bound has to be a number")
    return np.broadcast_to(array, (size,)).copy()


def _check(
    bounds: Bounds,
    low: Float[np.ndarray, "n"],
    high: Float[np.ndarray, "n"],
    family: Int[np.ndarray, "n"],
    family_low: Float[np.ndarray, "m"],
    family_high: Float[np.ndarray, "m"],
) -> None:
    """ValueError unless some mixture meets all bounds."""
    slack = SLACK * len(low)
    if (low > high).any():
        i = int(np.argmax(low > high))
        name = bounds.tasks[i] if bounds.tasks else i
        raise ValueError(
            f"infeasible bounds: task {name} has low {low[i]:g} above high {high[i]:g}"
        )
    count = len(family_low)
    least = np.maximum(np.bincount(family, low, count), family_low)
    most = np.minimum(np.bincount(family, high, count), family_high)
    if count > 1 and (least > most + slack).any():
        g = int(np.argmax(least - most))
        name = bounds.families[g] if bounds.families else g
        raise ValueError(
            f"infeasible bounds: family {name} needs at least {least[g]:.6g} of the mixture and "
            f"may have at most {most[g]:.6g}"
        )
    if least.sum() > 1 + slack:
        raise ValueError(
            f"infeasible bounds: the lower ones sum to {least.sum():.6g}, more than the 1 that the "
            "weights sum to; lower some"
        )
    if most.sum() < 1 - slack:
        raise ValueError(
            f"infeasible caps: the upper bounds sum to {most.sum():.6g}, less than the 1 that the "
            "weights sum to; raise them or lower the budget"
        )
