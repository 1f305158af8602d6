"""Tasks by the size of their data, with the cap and the temperature of multi-task practice."""

import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.inputs import as_vector


def size_proportional(
    sizes: Int[np.ndarray, "n"], *, cap: float | None = None, temperature: float = 1.0
) -> Float[np.ndarray, "n"]:
    """p ~ min(N_i, cap)^(1/temperature).

    Temperature 1 is proportional to size (examples-proportional mixing with a cap), infinity is
    uniform over the tasks that have data. Source: Raffel et al. 2020 (T5), section 3.5.2.

    Args:
      sizes: examples of each task, >= 0, [n].
      cap: sizes above it count as `cap`; None for none.
      temperature: > 0.
    """
    counts = as_vector(sizes, "sizes")
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() <= 0:
        raise ValueError("sizes have to be >= 0, and one of them more")
    if cap is not None and not cap > 0:
        raise ValueError(f"cap={cap} has to be > 0")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} has to be > 0")
    counts = np.minimum(counts, np.inf if cap is None else cap)
    # Relative to the largest, so that no power overflows; a task without data keeps no weight.
    share = np.where(counts > 0, (counts / counts.max()) ** (1.0 / temperature), 0.0)
    return share / share.sum()
