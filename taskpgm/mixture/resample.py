"""How sure the weights are: the exact mixture of every resample of the affinity matrix."""

import dataclasses
from typing import Annotated

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.energy import energy_from_affinity
from taskpgm.mixture.inputs import ArrayLike, as_symmetric
from taskpgm.mixture.solve import solve_exact


@dataclasses.dataclass(frozen=True)
class Resampled:
    """Mixtures of resampled matrices.

    Attributes:
      weights: [b, n].
      gap: certificate of each, [b].
    """

    weights: Float[np.ndarray, "b n"]
    gap: Float[np.ndarray, "b"]

    @property
    def kept(self) -> Float[np.ndarray, "n"]:
        """Share of the resamples in which a task has weight."""
        return (self.weights > 0).mean(0)

    def interval(self, level: float = 0.95) -> Float[np.ndarray, "2 n"]:
        """Lower and upper end of the percentile interval of each weight."""
        if not 0 < level < 1:
            raise ValueError(f"level={level} has to lie between 0 and 1")
        return np.quantile(self.weights, [(1 - level) / 2, (1 + level) / 2], axis=0)


def bootstrap_weights(
    affinities: Annotated[ArrayLike, "b n n"],
    ratio: float | int,
    cap: Annotated[ArrayLike, "n"] | None = None,
    *,
    bounds: Bounds | None = None,
    psd: str = "simplex",
    floor: float | int = 1e-3,
    judged: Annotated[ArrayLike, "n m"] | None = None,
    importance: Annotated[ArrayLike, "m"] | None = None,
) -> Resampled:
    """The exact mixture of each of `b` matrices: one batch of `solve_exact`.

    Resampling held-out examples within each task, which makes the matrices, is done where the
    scores are (`taskpgm.affinity`).

    Args:
      affinities: resampled matrices.
      ratio, psd, floor, judged, importance: as in `energy_from_affinity`; `judged` may be a batch.
      cap, bounds: as in `solve_exact`.
    Raises:
      ValueError: as `energy_from_affinity` and `solve_exact`.

    >>> bootstrap_weights([np.eye(2), np.diag([1.0, 3.0])], 0.0, psd="shift").weights
    array([[0.5 , 0.5 ],
           [0.75, 0.25]])
    """
    matrices = as_symmetric(affinities, "affinities")
    if matrices.ndim != 3:
        raise ValueError(f"affinities has shape {matrices.shape}: it has to be [b, n, n]")
    energy = energy_from_affinity(
        matrices, ratio, psd=psd, floor=floor, judged=judged, importance=importance
    )
    found = solve_exact(energy, cap, bounds=bounds)
    return Resampled(np.asarray(found.weights), np.asarray(found.gap))
