"""The energy of a mixture: how redundant its tasks are, less how well they represent all tasks.

E(p) = 1/2 p' S~ p - u' p on the simplex, with u = (r/n) S 1 and S~ the affinity matrix made
positive definite. r is dimensionless: 0 asks for diversity alone, 1 gives exactly the uniform
mixture, more moves past it toward the most representative tasks.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from taskpgm.mixture.floats import in_float64, is_traced, read_array, read_symmetric, read_vector


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Energy:
    """E(p) = 1/2 p' pairwise p - unary' p. A pytree; leading axes are a batch of energies.

    Attributes:
      unary: the reward u of a unit of weight on each task, [*b, n].
      pairwise: the positive semi-definite redundancy S~, [*b, n, n]; its batch axes and those of
        `unary` broadcast, so one matrix may serve many ratios.
    """

    unary: Float[Array, "*b n"]
    pairwise: Float[Array, "*b n n"]

    def energy(self, weights: Float[Array, "*b n"]) -> Float[Array, "*b"]:
        """E at `weights`."""
        unary, pairwise = self.terms(weights)
        return unary + pairwise

    def terms(self, weights: Float[Array, "*b n"]) -> tuple[Float[Array, "*b"], ...]:
        """The two terms of E: -u'p (representativeness) and 1/2 p' S~ p (redundancy)."""
        xp = jnp if is_traced(self, weights) else np
        weights = xp.asarray(weights)
        unary = -xp.sum(xp.asarray(self.unary) * weights, -1)
        pull = xp.squeeze(xp.asarray(self.pairwise) @ weights[..., None], -1)
        return unary, 0.5 * xp.sum(weights * pull, -1)

    def gradient(self, weights: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
        """S~ p - u."""
        xp = jnp if is_traced(self, weights) else np
        pull = xp.asarray(self.pairwise) @ xp.asarray(weights)[..., None]
        return xp.squeeze(pull, -1) - xp.asarray(self.unary)


def read_energy(energy: Energy) -> Energy:
    """`energy` in float64, checked: shapes that agree, finite entries, a symmetric `pairwise`."""
    pairwise = read_symmetric(energy.pairwise, "pairwise")
    return Energy(read_vector(energy.unary, "unary", pairwise.shape[-1]), pairwise)


def _shift(matrix: Array, floor: Array) -> Array:
    """S + cI with the smallest c >= 0 that brings the smallest eigenvalue to floor * ||S||_2."""
    values = jnp.linalg.eigvalsh(matrix, symmetrize_input=False)
    c = jnp.maximum(floor * jnp.abs(values).max() - values[0], 0.0)
    return matrix + c * jnp.eye(len(values))


def _clip(matrix: Array, floor: Array) -> Array:
    """The nearest matrix in Frobenius norm with no eigenvalue below floor * ||S||_2."""
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    least = floor * jnp.abs(values).max()
    clipped = (vectors * jnp.maximum(values, least)) @ vectors.T
    return jnp.where(values[0] >= least, matrix, 0.5 * (clipped + clipped.T))


_REPAIRS: Mapping[str, Callable[..., Array]] = {"shift": _shift, "clip": _clip}


@in_float64
def make_positive_definite(
    affinity: Float[Array, "n n"], psd: str = "shift", floor: float = 1e-3
) -> Float[Array, "n n"]:
    """S~: `affinity` with no eigenvalue below floor * ||S||_2 (spectral norm); I for S = 0.

    `psd="shift"` adds a multiple of the identity, `psd="clip"` raises the low eigenvalues alone.
    """
    if psd not in _REPAIRS:
        raise ValueError(f"psd={psd!r} is not known; choose one of {list(_REPAIRS)}")
    floor = read_array(floor, "floor")
    if not is_traced(floor) and not 0 < floor <= 1:
        raise ValueError(f"floor={floor} has to lie in (0, 1], a share of the spectral norm")
    return _repair(jnp.asarray(read_symmetric(affinity, "affinity")), jnp.asarray(floor), psd=psd)


@functools.partial(jax.jit, static_argnames="psd")
def _repair(affinity: Array, floor: Array, *, psd: str) -> Array:
    if affinity.ndim > 2:
        return jax.lax.map(lambda one: _repair(one, floor, psd=psd), affinity)
    repaired = _REPAIRS[psd](affinity, floor)
    return jnp.where((affinity != 0).any(), repaired, jnp.eye(len(affinity)))


@in_float64
def energy_from_affinity(
    affinity: Float[Array, "*b n n"],
    ratio: Float[Array, "*b"] | float,
    *,
    psd: str = "shift",
    floor: float = 1e-3,
) -> Energy:
    """The energy of an affinity matrix at a ratio of unary to pairwise potential.

    Args:
      affinity: S, symmetric to 1e-6 of its largest entry; [n, n], or a batch of such.
      ratio: r = n * beta / lambda of Chanda et al. (arXiv 2507.12612), >= 0; a number, or an
        array: a batch of energies over one S~.
      psd: how S is made positive definite: "shift" (the paper's) or "clip".
      floor: smallest eigenvalue of S~ as a share of ||S||_2, in (0, 1].
    Returns:
      Energy in float64: unary = (r/n) S 1 of S itself, pairwise = S~.
    Raises:
      ValueError: not square, n < 1, NaN or infinity, asymmetric, or a negative ratio.
    """
    ratio = read_array(ratio, "ratio")
    if not is_traced(ratio) and (ratio < 0).any():
        raise ValueError(f"ratio={ratio.min()} is negative: it has to be >= 0")
    affinity = read_symmetric(affinity, "affinity")
    # Written so that r = 1 gives exactly S 1 / n.
    means = affinity.sum(-1) / affinity.shape[-1]
    return Energy(ratio[..., None] * means, make_positive_definite(affinity, psd, floor))
