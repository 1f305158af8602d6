"""All pairs of one block of models, by the fused kernel where this machine has shown it right."""

from collections.abc import Callable
from functools import cache

import jax
import numpy as np
from jaxtyping import Array, Float

from taskpgm.affinity import kernels
from taskpgm.models import admission
from taskpgm.models.mapped import mesh_of

FUSED = {"gpu": "pairwise_gpu", "tpu": "pairwise_tpu"}  # of fused.py


def pairwise(log_probs: Float[Array, "n t v"], weights: Float[Array, "e t"]) -> Float[Array, "e p"]:
    """`kernels.pairwise` by the fastest form that is right here; same error."""
    return choose(log_probs)(log_probs, weights)


def choose(log_probs: Float[Array, "n t v"]) -> Callable[..., Array]:
    """The platform's fused kernel if admitted. Over several devices it is kernels.pairwise, which
    XLA can partition."""
    platform, mesh = jax.default_backend(), mesh_of(log_probs)
    if platform in FUSED and (mesh.empty or mesh.size == 1):
        n, t, v = log_probs.shape
        # Small, with the same remainders after whole tiles and blocks.
        shape = min(n, 8 + n % 8), min(t, 128 + t % 128), min(v, 1536 + v % 512)
        if admitted(platform, jax.typeof(log_probs).dtype, shape):
            return _fused(platform)
    return kernels.pairwise


def _fused(platform: str) -> Callable[..., Array]:
    from taskpgm.affinity import fused  # here, as it brings all of Pallas along

    return getattr(fused, FUSED[platform])


@cache
def admitted(platform: str, dtype: np.dtype, shape: tuple[int, int, int]) -> bool:
    """Whether the platform's fused kernel gives what kernels.pairwise gives, within twice the error
    that each may have, on distributions from nearly equal to far apart, zeros among them."""
    n, t, v = shape
    rng = np.random.default_rng(0)
    apart = np.logspace(-4, 0.5, n)[:, None, None]
    logits = 3 * rng.normal(size=(t, v)) + apart * rng.normal(size=shape)
    logits[n // 2 :, :, 1::3] = -np.inf
    x = (logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)).astype(dtype)
    weights = rng.random((2, t))
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)

    def compare():
        want, got = (
            np.asarray(pairs(x, weights), np.float64)
            for pairs in (kernels.pairwise, _fused(platform))
        )
        limit = 2 * (2e-6 * want + 2e-7 * np.sqrt(want) + 1e-13)
        worst = (np.abs(got - want) / limit).max(initial=0.0)
        return None if worst <= 1 else f"a divergence is off by {worst:.1e} times what is allowed"

    return admission.admitted("the fused JSD kernel", "XLA's form", compare)
