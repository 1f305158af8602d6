"""The closed form of the paper, and the exact solution; each says how far from optimal it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from taskpgm.mixture.active_set import is_enough
from taskpgm.mixture.certificate import duality_gap
from taskpgm.mixture.chain import certain_chained, exchange_chained
from taskpgm.mixture.energy import Energy, read_energy
from taskpgm.mixture.faces import make_problem
from taskpgm.mixture.floats import in_float64, is_traced
from taskpgm.mixture.hard import persevere
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
    """Apply `one` to every problem of the batch that the leading axes broadcast to.

    Axes that an operand lacks stay unbatched: one matrix under many ratios is held once.
    """
    batch = jnp.broadcast_shapes(unary.shape[:-1], pairwise.shape[:-2], cap.shape[:-1])
    run = one
    for axis in reversed(range(len(batch))):
        behind = len(batch) - axis
        has = (unary.ndim - 1 >= behind, pairwise.ndim - 2 >= behind, cap.ndim - 1 >= behind)
        run = jax.vmap(run, in_axes=tuple(0 if h else None for h in has))
    unary, pairwise, cap = (
        jnp.broadcast_to(x, batch[len(batch) - own :] + x.shape[own:])
        for x, own in ((unary, unary.ndim - 1), (pairwise, pairwise.ndim - 2), (cap, cap.ndim - 1))
    )
    return run(unary, pairwise, cap)


def _closed_form(unary, pairwise, cap) -> Solution:
    solved = jnp.linalg.solve(pairwise, jnp.stack([unary, jnp.ones_like(unary)], 1))
    nu = (solved[:, 0].sum() - 1) / solved[:, 1].sum()
    p = solved[:, 0] - nu * solved[:, 1]
    weights = jnp.where((p < 0).any(), _project(p, cap), p)
    gradient = pairwise @ weights - unary
    energy = 0.5 * jnp.sum(weights * (gradient - unary))
    gap = duality_gap(gradient, weights, cap)
    return Solution(weights, energy, gap, jnp.sum(weights > 0), "closed form")


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


def _exact(solver):
    def one(unary, pairwise, cap) -> Solution:
        start = jnp.zeros(len(unary), jnp.int64)
        found = solver(make_problem(unary, pairwise, cap), start)
        return Solution(found.weights, found.energy, found.gap, jnp.sum(found.weights > 0), "exact")

    return jax.jit(lambda *operands: solve_over_batch(one, *operands))


# Compiling the method for hard problems takes longer than solving most; it waits until one comes.
_by_exchange = _exact(exchange_chained)
_by_certain = _exact(certain_chained)
_by_persevering = _exact(lambda problem, start: persevere(problem))


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
    operands = energy.unary, energy.pairwise, cap
    if is_traced(operands):
        return _by_certain(*operands)
    found = jax.tree.map(np.asarray, _by_exchange(*operands))
    unfinished = np.argwhere(~is_enough(found))
    if len(unfinished):
        found = _finish(found, operands, unfinished)
    return found


def _finish(found: Solution, operands, indices) -> Solution:
    """`found` with the problems of the batch at `indices` solved by the method for hard ones."""
    batch = found.energy.shape
    found = jax.tree.map(lambda x: np.array(x), found)
    unary, pairwise, cap = operands
    for index in map(tuple, indices):
        own = (
            np.broadcast_to(unary, batch + unary.shape[-1:])[index],
            np.broadcast_to(pairwise, batch + pairwise.shape[-2:])[index],
            np.broadcast_to(cap, batch + cap.shape[-1:])[index],
        )
        one = _by_persevering(*own)
        if not np.isfinite(one.weights).all():
            raise ValueError("pairwise is not positive semi-definite: make it so first, see psd=")
        for field in ("weights", "energy", "gap", "support"):
            getattr(found, field)[index] = getattr(one, field)
    return found
