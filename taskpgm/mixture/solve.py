"""The closed form of the paper, and the exact solution; each says how far from optimal it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from taskpgm.mixture.certificate import duality_gap
from taskpgm.mixture.chain import solve_problem
from taskpgm.mixture.energy import Energy, read_energy
from taskpgm.mixture.faces import make_problem
from taskpgm.mixture.floats import in_float64, is_traced
from taskpgm.mixture.simplex import _project, check_caps


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

    weights: Float[Array, "*b n"]
    energy: Float[Array, "*b"]
    gap: Float[Array, "*b"]
    support: Int[Array, "*b"]
    method: str = dataclasses.field(metadata={"static": True})


def _describe(weights, energy: Energy, cap, method: str) -> Solution:
    gradient = energy.pairwise @ weights - energy.unary
    value = 0.5 * jnp.sum(weights * (gradient - energy.unary))
    support = jnp.sum(weights > 0)
    return Solution(weights, value, duality_gap(gradient, weights, cap), support, method)


def read_cap(cap, size: int):
    """Caps as [*b, n], checked; 2, which never binds, for each task where there are none."""
    if cap is None:
        return np.full(size, 2.0)
    if is_traced(cap):
        return jnp.broadcast_to(cap.astype(jnp.float64), cap.shape[:-1] + (size,))
    cap = np.asarray(cap, np.float64)
    cap = cap if cap.ndim else np.full(size, cap)
    if cap.shape[-1] != size:
        raise ValueError(f"cap has {cap.shape[-1]} entries where there are {size} tasks")
    check_caps(cap)
    return np.minimum(cap, 2.0)


def solve_over_batch(one, unary, pairwise, cap) -> Solution:
    """Apply `one` to every problem of the batch that the leading axes broadcast to."""
    batch = jnp.broadcast_shapes(unary.shape[:-1], pairwise.shape[:-2], cap.shape[:-1])
    run = one
    for axis in reversed(range(len(batch))):
        # Axes that an operand lacks stay unbatched: one matrix under many ratios is held once.
        behind = len(batch) - axis
        has = (unary.ndim - 1 >= behind, pairwise.ndim - 2 >= behind, cap.ndim - 1 >= behind)
        run = jax.vmap(run, in_axes=tuple(0 if h else None for h in has))
    if batch:
        unary, cap = (jnp.broadcast_to(x, batch[-(x.ndim - 1) :] + x.shape[-1:])
                      if x.ndim > 1 else x for x in (unary, cap))  # fmt: skip
        if pairwise.ndim > 2:
            pairwise = jnp.broadcast_to(
                pairwise, batch[-(pairwise.ndim - 2) :] + pairwise.shape[-2:]
            )
    return run(unary, pairwise, cap)


def _closed_form(unary, pairwise, cap) -> Solution:
    solved = jnp.linalg.solve(pairwise, jnp.stack([unary, jnp.ones_like(unary)], 1))
    nu = (solved[:, 0].sum() - 1) / solved[:, 1].sum()
    p = solved[:, 0] - nu * solved[:, 1]
    weights = jnp.where((p < 0).any(), _project(p, cap), p)
    return _describe(weights, Energy(unary, pairwise), cap, "closed form")


@in_float64
def solve_closed_form(energy: Energy) -> Solution:
    """The paper's mixture: p = S~^-1 (u - nu 1), projected on the simplex where negative.

    With S~ = S + cI it is r * uniform + (1 - r) * w, w = S~^-1 1 / (1' S~^-1 1). It minimises the
    energy over sum p = 1, so it is the optimum only while no entry is negative; `gap` says how far
    it may be from it otherwise. Source: Chanda et al., arXiv 2507.12612.

    Raises:
      ValueError: bad shapes, NaN or infinity, an asymmetric or singular `pairwise`.
    """
    energy = read_energy(energy)
    found = _jit_closed_form(jnp.asarray(energy.unary), jnp.asarray(energy.pairwise))
    if not is_traced(found) and not np.isfinite(found.weights).all():
        raise ValueError("pairwise is singular: the closed form needs it positive definite")
    return found


@jax.jit
def _jit_closed_form(unary, pairwise):
    return solve_over_batch(_closed_form, unary, pairwise, jnp.full(unary.shape[-1], 2.0))


def _exact(unary, pairwise, cap) -> Solution:
    start = jnp.zeros(len(unary), jnp.int64)
    weights, _ = solve_problem(make_problem(unary, pairwise, cap), start)
    return _describe(weights, Energy(unary, pairwise), cap, "exact")


@in_float64
def solve_exact(energy: Energy, cap: Float[Array, "n"] | float | None = None) -> Solution:
    """The minimiser of the energy on the simplex, or on the capped simplex.

    A finite active-set method (see `active_set`): gap <= 1e-9 * max(1, |E|), for singular
    `pairwise` too (then any one of the optima). Energies with leading axes are solved as a batch,
    as they are under `jax.vmap`; the batch axes are faster, since x64 need not be on around them.

    Args:
      energy: `pairwise` positive semi-definite.
      cap: largest weight of each task, a number or [*b, n]; None for no caps. For a data set of N_i
        examples, cap_i = N_i * max_epochs / budget.
    Raises:
      ValueError: bad shapes, NaN or infinity, an asymmetric or indefinite `pairwise`, infeasible
        caps. Under jit or vmap values are not looked at; infeasible caps then give NaN.
    """
    energy = read_energy(energy)
    cap = read_cap(cap, energy.unary.shape[-1])
    found = _jit_exact(*map(jnp.asarray, (energy.unary, energy.pairwise, cap)))
    if not is_traced(found) and not np.isfinite(found.weights).all():
        raise ValueError("pairwise is not positive semi-definite: make it so first, see psd=")
    return found


@jax.jit
def _jit_exact(unary, pairwise, cap):
    return solve_over_batch(_exact, unary, pairwise, cap)
