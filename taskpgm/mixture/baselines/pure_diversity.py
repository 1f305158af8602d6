"""Control: diversity alone, the w of the closed form."""

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.energy import energy_from_affinity
from taskpgm.mixture.solve import solve_closed_form


def pure_diversity(
    affinity: Float[np.ndarray, "n n"], *, psd: str = "simplex", floor: float = 1e-3
) -> Float[np.ndarray, "n"]:
    """w = S~^-1 1 / (1' S~^-1 1), projected on the simplex: the closed form at ratio 0."""
    return solve_closed_form(energy_from_affinity(affinity, 0.0, psd=psd, floor=floor)).weights
