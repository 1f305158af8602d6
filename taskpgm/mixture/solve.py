"""The closed form of the paper, and the exact solution; each says how far from optimal it is."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from taskpgm.mixture.bounds import Bounds, as_arrays
from taskpgm.mixture.energy import Energy, as_energy, centred, library
from taskpgm.mixture.inputs import AnyArray, ArrayLike, in_float64, is_traced
from taskpgm.mixture.qp import Candidate, Problem
from taskpgm.mixture.qp.warm_start import WarmStart
from taskpgm.mixture.simplex import check_caps, project


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Solution:
    """A mixture and what is known of it. A pytree; leading axes are those of the energies.

    Attributes:
      weights: non-negative, sum 1, [*b, n].
      energy: E(weights), [*b].
      gap: E(weights) - E* is at most this, [*b].
      support: how many weights are not zero, [*b].
      method: what found it.
    """

    weights: Float[AnyArray, "*b n"]
    energy: Float[AnyArray, "*b"] | float
    gap: Float[AnyArray, "*b"] | float
    support: Int[AnyArray, "*b"] | int | np.integer
    method: str = dataclasses.field(metadata={"static": True})


def as_cap(cap: ArrayLike | None, size: int) -> Float[AnyArray, "*b n"]:
    """Caps as [*b, n], checked; 1, which never binds, for each task where there are none."""
    if cap is None:
        return np.ones(size)
    if is_traced(cap):
        cap = jnp.asarray(cap).astype(jnp.float64)
        return jnp.broadcast_to(cap, cap.shape[:-1] + (size,))
    cap = np.asarray(cap, np.float64)
    cap = cap if cap.ndim else np.full(size, cap)
    if cap.shape[-1] != size:
        raise ValueError(f"cap has {cap.shape[-1]} entries where there are {size} tasks")
    check_caps(cap)
    return np.minimum(cap, 1.0)


@in_float64
def solve_closed_form(energy: Energy) -> Solution:
    """The paper's mixture: p = S~^-1 (u - nu 1), projected on the simplex where negative.

    With S~ = S + cI it is r * uniform + (1 - r) * w, w = S~^-1 1 / (1' S~^-1 1). It minimises the
    energy over sum p = 1, so it is the optimum only while no entry is negative; `gap` says how far
    from it the projection may be. Source: Chanda et al., arXiv 2507.12612.

    Raises:
      ValueError: bad shapes, NaN or infinity, an asymmetric `pairwise`, or one that is singular on
        the subspace 1'x = 0.

    >>> solve_closed_form(Energy(np.array([1.0, 0.0]), np.eye(2))).weights
    array([1., 0.])
    """
    energy = as_energy(energy)
    xp = library(energy)
    unary, pairwise = xp.asarray(energy.unary), xp.asarray(energy.pairwise)
    # On the plane sum p = 1 the centred matrix has the same minimiser, and it is never singular
    # where the formula has a value.
    batch = np.broadcast_shapes(unary.shape[:-1], pairwise.shape[:-2])
    reward = xp.broadcast_to(unary - pairwise.mean(-1), (*batch, unary.shape[-1]))
    right = xp.stack([reward, xp.ones_like(reward)], -1)
    try:
        solved = xp.linalg.solve(centred(pairwise), right)
    except np.linalg.LinAlgError:
        solved = np.full_like(right, np.nan)
    y, z = solved[..., 0], solved[..., 1]
    weights = y - ((y.sum(-1) - 1) / z.sum(-1))[..., None] * z
    if not is_traced(weights):
        if not np.isfinite(weights).all():
            raise ValueError("pairwise is singular: the closed form needs it positive definite")
    weights = _projected(weights)
    energy = Energy(unary, pairwise)
    gradient = energy.gradient(weights)
    gap = xp.maximum(xp.sum(gradient * weights, -1) - gradient.min(-1), 0.0)
    return Solution(weights, energy.energy(weights), gap, xp.sum(weights > 0, -1), "closed form")


@in_float64
def solve_exact(
    energy: Energy,
    cap: Annotated[ArrayLike, "*b n"] | None = None,
    *,
    bounds: Bounds | None = None,
) -> Solution:
    """The minimiser of the energy over all mixtures, or over those that meet the bounds.

    A finite active-set method (see `qp`): gap <= 1e-9 * max(1, |E|), for singular `pairwise` too
    (then any one of the optima). The gap is the exact optimum of a linear programme over the same
    feasible set. Energies with leading axes are solved as a batch, each from the solution of the
    one before. Under `jit` and `vmap` the same solver runs as a callback on the host.

    Args:
      energy: `pairwise` positive semi-definite, at least on the subspace 1'x = 0.
      cap: largest weight of each task, a number or [*b, n]; None for no caps. For a data set of N_i
        examples, cap_i = N_i * max_epochs / budget.
      bounds: smallest and largest weights of tasks and of families; with `cap`, both hold.
    Raises:
      ValueError: bad shapes, NaN or infinity, an asymmetric or indefinite `pairwise`, or bounds
        that no mixture meets. Under jit or vmap, infeasible caps give NaN.

    >>> solve_exact(Energy(np.array([1.0, 0.0]), np.eye(2)), cap=0.75).weights
    array([0.75, 0.25])
    """
    energy = as_energy(energy)
    size = energy.unary.shape[-1]
    as_arrays(bounds, size)  # infeasible ones are refused, whatever is traced
    chain = WarmStart()

    def one(
        unary: Float[np.ndarray, "n"],
        pairwise: Float[np.ndarray, "n n"],
        cap: Float[np.ndarray, "n"],
    ) -> Candidate:
        return chain.solve(Problem(unary, pairwise, *as_arrays(bounds, size, cap)))

    return solve_each(one, "exact", energy, as_cap(cap, size))


def solve_each(
    solver: Callable[..., Candidate], method: str, energy: Energy, *others: AnyArray
) -> Solution:
    """`solver` of (unary, pairwise, *others) on every problem of the batch, in numpy.

    Args:
      others: arrays [*b, k]; their batch axes broadcast with those of the energy. Under a
        transformation all of it runs as a callback, and what raises ValueError gives NaN.
    """
    operands = energy.unary, energy.pairwise, *others
    ranks = [1, 2] + [1] * len(others)
    size = energy.unary.shape[-1]

    def run(strict: bool, *arrays: Any) -> tuple:
        heads = [x.shape[: x.ndim - rank] for x, rank in zip(arrays, ranks, strict=True)]
        batch = np.broadcast_shapes(*heads)
        whole = [
            np.broadcast_to(x, batch + x.shape[x.ndim - rank :])
            for x, rank in zip(arrays, ranks, strict=True)
        ]
        weights, support = np.full((*batch, size), np.nan), np.zeros(batch, np.int64)
        value, gap = np.full(batch, np.nan), np.full(batch, np.nan)
        for i in np.ndindex(batch):
            try:
                found = solver(*(x[i] for x in whole))
            except ValueError:
                if strict:
                    raise
                continue
            weights[i], value[i], gap[i] = found.weights, found.energy, found.gap
            support[i] = np.count_nonzero(found.weights)
        return weights, value[()], gap[()], support[()]

    if not is_traced(operands):
        weights, value, gap, support = run(True, *operands)
        return Solution(weights, value, gap, support, method)
    batch = np.broadcast_shapes(
        *(x.shape[: x.ndim - rank] for x, rank in zip(operands, ranks, strict=True))
    )
    kinds = (jnp.float64, jnp.float64, jnp.float64, jnp.int64)
    shapes = [jax.ShapeDtypeStruct(batch, kind) for kind in kinds]
    shapes[0] = jax.ShapeDtypeStruct((*batch, size), jnp.float64)
    found = jax.pure_callback(
        lambda *arrays: run(False, *map(np.asarray, arrays)),
        tuple(shapes),
        *operands,
        vmap_method="expand_dims",
    )
    weights, value, gap, support = found
    return Solution(weights, value, gap, support, method)


def _projected(weights: Float[AnyArray, "*b n"]) -> Float[AnyArray, "*b n"]:
    """The rows that have a negative entry, projected on the simplex; the others as they are."""
    rows = weights.reshape(-1, weights.shape[-1])
    if is_traced(rows):
        made = jax.vmap(lambda p: jnp.where((p < 0).any(), project(p, None), p))(rows)
        return made.reshape(weights.shape)
    outside = (rows < 0).any(1)
    if outside.any():
        rows = rows.copy()
        with jax.enable_x64(True):
            for i in np.flatnonzero(outside):
                rows[i] = project(rows[i], None)
    return rows.reshape(weights.shape)
