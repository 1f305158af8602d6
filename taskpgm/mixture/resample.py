"""How sure the weights are: the exact mixture of every resample of the affinity matrix."""

import dataclasses

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.energy import energy_from_affinity
from taskpgm.mixture.inputs import as_symmetric
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
    affinities: Float[np.ndarray, "b n n"],
    ratio: float,
    cap: Float[np.ndarray, "n"] | float | None = None,
    *,
    psd: str = "simplex",
    floor: float = 1e-3,
) -> Resampled:
    """The exact mixture of each of `b` matrices: one batch of `solve_exact`.

    Resampling held-out examples within each task, which makes the matrices, is done where the
    scores are (`taskpgm.affinity`).

    Raises:
      ValueError: as `energy_from_affinity` and `solve_exact`.
    """
    matrices = as_symmetric(affinities, "affinities")
    if matrices.ndim != 3:
        raise ValueError(f"affinities has shape {matrices.shape}: it has to be [b, n, n]")
    found = solve_exact(energy_from_affinity(matrices, ratio, psd=psd, floor=floor), cap)
    return Resampled(found.weights, found.gap)
