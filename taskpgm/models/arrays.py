"""What `Array` means in signatures here: an array of JAX, or of numpy, which JAX takes as it is."""

from typing import TYPE_CHECKING

import jax
import numpy as np

if TYPE_CHECKING:  # numpy's has fewer methods; what comes back is JAX's
    from jax import Array
else:
    Array = jax.Array | np.ndarray

__all__ = ["Array"]
