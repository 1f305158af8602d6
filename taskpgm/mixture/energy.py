"""The energy of a mixture: how redundant its tasks are, less how well they represent all tasks.

E(p) = 1/2 p' S~ p - u' p on the simplex, with u = (r/n) S 1 and S~ the affinity matrix S made
convex. The ratio r is dimensionless: 0 asks for diversity alone, 1 gives exactly the uniform
mixture, larger ones move past it toward the most representative tasks.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from taskpgm.mixture.inputs import (
    AnyArray,
    ArrayLike,
    as_float64,
    as_mixture,
    as_symmetric,
    as_vector,
    in_float64,
    is_traced,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Energy:
    """E(p) = 1/2 p' pairwise p - unary' p. A pytree; leading axes are a batch of energies.

    Attributes:
      unary: the reward u of a unit of weight on each task, [*b, n].
      pairwise: the redundancy S~, [*b, n, n], positive semi-definite at least on the subspace
        1'x = 0. Batch axes of the two broadcast, so that one matrix can serve many ratios.

    >>> Energy(np.array([1.0, 0.0]), np.eye(2)).energy(np.array([0.5, 0.5]))
    np.float64(-0.25)
    """

    unary: Annotated[AnyArray, "*b n"]
    pairwise: Annotated[AnyArray, "*b n n"]

    def energy(self, weights: Float[AnyArray, "*d n"]) -> Float[AnyArray, "*e"] | float:
        """E at `weights`; batch axes broadcast."""
        unary, pairwise = self.terms(weights)
        return unary + pairwise

    def terms(
        self, weights: Float[AnyArray, "*d n"]
    ) -> tuple[Float[AnyArray, "*e"] | float, Float[AnyArray, "*e"] | float]:
        """The two terms of E: -u'p (representativeness) and 1/2 p' S~ p (redundancy)."""
        xp = library(self, weights)
        weights = xp.asarray(weights)
        pull = xp.squeeze(xp.asarray(self.pairwise) @ weights[..., None], -1)
        unary = -xp.sum(xp.asarray(self.unary) * weights, -1)
        return unary, 0.5 * xp.sum(weights * pull, -1)

    def gradient(self, weights: Float[AnyArray, "*d n"]) -> Float[AnyArray, "*e n"]:
        """S~ p - u."""
        xp = library(self, weights)
        pull = xp.asarray(self.pairwise) @ xp.asarray(weights)[..., None]
        return xp.squeeze(pull, -1) - xp.asarray(self.unary)


def library(*trees: object) -> ModuleType:
    """jax.numpy where a leaf is a tracer, else numpy, which has nothing to compile."""
    return jnp if is_traced(*trees) else np


def as_energy(energy: Energy) -> Energy:
    """`energy` in float64, checked: shapes that agree, finite entries, a symmetric `pairwise`."""
    pairwise = as_symmetric(energy.pairwise, "pairwise")
    return Energy(as_vector(energy.unary, "unary", pairwise.shape[-1]), pairwise)


def centred(pairwise: Float[AnyArray, "*b n n"]) -> Float[AnyArray, "*b n n"]:
    """P A P + a 11'/n with P = I - 11'/n: A on the subspace 1'x = 0, and `a` along 1.

    For p with sum 1, p'Ap and p'(PAP)p differ by 2 (A1/n)'p and a constant, so a solver may factor
    this matrix instead of A. It is positive definite if A is so on the subspace, and as well
    conditioned as A is there, because `a` is the mean of the eigenvalues there.
    """
    n = pairwise.shape[-1]
    means = pairwise.mean(-1)
    mean = means.mean(-1)[..., None, None]
    inside = pairwise - (means[..., :, None] + means[..., None, :]) + mean
    trace = inside.trace(axis1=-2, axis2=-1)[..., None, None]
    along = library(pairwise).where(trace > 0, trace / max(n - 1, 1), 1.0)
    return inside + along / n


# --- Making an affinity convex --------------------------------------------------------------------


def _least_shift(
    values: Float[AnyArray, "*b n"], floor: Float[AnyArray, ""], xp: ModuleType
) -> Float[AnyArray, "*b"]:
    """The smallest c >= 0 that brings min(values) + c to floor * max |values|."""
    return xp.asarray(xp.maximum(floor * xp.abs(values).max(-1) - values.min(-1), 0.0))


def _shift(matrix: AnyArray, floor: AnyArray, xp: ModuleType) -> AnyArray:
    c = _least_shift(xp.linalg.eigvalsh(matrix), floor, xp)
    c = xp.where((matrix != 0).any((-2, -1)), c, 1.0)
    return matrix + c[..., None, None] * xp.eye(matrix.shape[-1])


def _shift_on_simplex(matrix: AnyArray, floor: AnyArray, xp: ModuleType) -> AnyArray:
    n = matrix.shape[-1]
    if n == 1:
        return matrix
    values = xp.linalg.eigvalsh(on_subspace(matrix))
    # Where nothing but rounding is left on the subspace, S is as good as zero there.
    rounding = 8 * n * np.finfo(np.float64).eps * xp.abs(matrix).max((-2, -1))
    flat = xp.abs(values).max(-1) <= rounding
    c = xp.where(flat, 1.0, _least_shift(values, floor, xp))
    return matrix + c[..., None, None] * xp.eye(n)


def _clip(matrix: AnyArray, floor: AnyArray, xp: ModuleType) -> AnyArray:
    values, vectors = xp.linalg.eigh(matrix)
    least = (floor * xp.abs(values).max(-1))[..., None]
    made = (vectors * xp.maximum(values, least)[..., None, :]) @ vectors.swapaxes(-1, -2)
    made = xp.where((values.min(-1) >= least[..., 0])[..., None, None], matrix, made)
    made = 0.5 * (made + made.swapaxes(-1, -2))
    return xp.where((matrix != 0).any((-2, -1))[..., None, None], made, xp.eye(matrix.shape[-1]))


PSD: Mapping[str, Callable[[AnyArray, AnyArray, ModuleType], AnyArray]] = {
    "simplex": _shift_on_simplex,
    "shift": _shift,
    "clip": _clip,
}


def on_subspace(matrix: Float[AnyArray, "*b n n"]) -> Float[AnyArray, "*b n-1 n-1"]:
    """Q'AQ with the columns of Q an orthonormal basis of 1'x = 0.

    Q is the Householder reflection that takes 1 to a multiple of the first unit vector, without
    that vector.
    """
    n = matrix.shape[-1]
    xp = library(matrix)
    v = np.full(n, 1 / np.sqrt(n))
    v[0] += 1
    y = (matrix @ v)[..., None] * (2 / (v @ v))
    reflected = matrix - y * v - v[:, None] * y.swapaxes(-1, -2)
    reflected = reflected + (2 / (v @ v)) * xp.outer(v, v) * (v @ y)[..., None]
    return reflected[..., 1:, 1:]


@in_float64
def make_positive_definite(
    affinity: Annotated[ArrayLike, "*b n n"], psd: str = "simplex", floor: float | int = 1e-3
) -> Float[AnyArray, "*b n n"]:
    """S~: the affinity S made convex on the simplex.

    - `psd="simplex"`: S + cI with the smallest c >= 0 for which, on the subspace 1'x = 0, the least
      eigenvalue is at least `floor` times the largest absolute one there. Mixtures move along that
      subspace only, so this is the least shift that convexity asks for; along 1 the result may
      have a negative eigenvalue.
    - `psd="shift"`: the same over the whole space (the paper's).
    - `psd="clip"`: eigenvalues below `floor` * ||S||_2 raised to that, the nearest such matrix.

    A matrix that is zero (under "simplex": zero on the subspace) is shifted by 1.

    Raises:
      ValueError: an unknown `psd`, a floor outside (0, 1], or no symmetric finite matrix.

    >>> make_positive_definite([[0, -4], [-4, 0]])
    array([[ 0., -4.],
           [-4.,  0.]])
    >>> make_positive_definite([[0, -4], [-4, 0]], "shift")
    array([[ 4.004, -4.   ],
           [-4.   ,  4.004]])
    """
    if psd not in PSD:
        raise ValueError(f"psd={psd!r} is not known; choose one of {', '.join(PSD)}")
    least = as_float64(floor, "floor")
    if not is_traced(least) and not 0 < least <= 1:
        raise ValueError(f"floor={floor} has to lie in (0, 1], a share of the spectral norm")
    matrix = as_symmetric(affinity, "affinity")
    return PSD[psd](matrix, least, library(matrix, least))


@in_float64
def energy_from_affinity(
    affinity: Annotated[ArrayLike, "*b n n"],
    ratio: Annotated[ArrayLike, "*b"],
    *,
    psd: str = "simplex",
    floor: float | int = 1e-3,
    judged: Annotated[ArrayLike, "*b n m"] | None = None,
    importance: Annotated[ArrayLike, "m"] | None = None,
) -> Energy:
    """The energy of an affinity matrix at a ratio of unary to pairwise potential.

    Args:
      affinity: S, symmetric to 1e-6 of its largest entry; [n, n], or a batch of such.
      ratio: r = n * beta / lambda of Chanda et al. (arXiv 2507.12612), >= 0; a number, or an
        array: a batch of energies over one S~.
      psd: how S is made convex, "simplex" (the least shift), "shift" (the paper's) or "clip"; see
        `make_positive_definite`.
      floor: least eigenvalue as a share of the largest absolute one, in (0, 1].
      judged: affinity of each task (row) to the tasks that the mixture is judged on (columns). None
        for S itself: the tasks that are mixed. Targets that are judged and not mixed are columns
        of this matrix alone, so they enter the unary term and no other.
      importance: w, how much each judged task matters, >= 0 with sum 1; None for 1/m each.
    Returns:
      Energy in float64: unary = r * judged w, which is (r/n) S 1 by default, and pairwise = S~.
    Raises:
      ValueError: not square, n < 1, NaN or infinity, asymmetric, a negative ratio, or an
        importance that is no mixture.

    >>> energy = energy_from_affinity([[0, -1], [-1, 0]], ratio=2.0)
    >>> energy.unary
    array([-1., -1.])
    """
    r = as_float64(ratio, "ratio")
    if not is_traced(r) and (r < 0).any():
        raise ValueError(f"ratio={r.min()} is negative: it has to be >= 0")
    matrix = as_symmetric(affinity, "affinity")
    unary = r[..., None] * relevance(matrix, judged, importance)
    return Energy(unary, make_positive_definite(matrix, psd, floor))


def relevance(
    affinity: Float[AnyArray, "*b n n"],
    judged: Annotated[ArrayLike, "*b n m"] | None,
    importance: Annotated[ArrayLike, "m"] | None,
) -> Float[AnyArray, "*c n"]:
    """Each task's affinity to what the mixture is judged on: judged w, or S 1/n by default."""
    columns = affinity if judged is None else as_float64(judged, "judged")
    n = affinity.shape[-1]
    if columns.ndim < 2 or columns.shape[-2] != n or columns.shape[-1] < 1:
        raise ValueError(f"judged has shape {columns.shape}: it has to be [n, m] with n = {n} rows")
    if importance is None:
        # Written so that r = 1 gives exactly S 1 / n.
        return columns.sum(-1) / columns.shape[-1]
    return columns @ as_mixture(importance, "importance", columns.shape[-1])
