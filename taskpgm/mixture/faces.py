"""The linear algebra of one face: a convex quadratic with some indices held at their bounds."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Problem(NamedTuple):
    """min 1/2 p'Ap - u'p + 1/2 (p - centre)' diag(reg) (p - centre) on {0 <= p <= cap, sum p = 1}.

    Attributes:
      unary, pairwise: u and A.
      cap: at most 1; `high` is the cap, or infinity where it cannot bind.
      reg: zero, or what makes a singular A factorisable; the centre is given with each face.
      factor: Cholesky factor of A + diag(reg).
      scale: size of the terms whose rounding ends up in the multipliers.
    """

    unary: Float[Array, "n"]
    pairwise: Float[Array, "n n"]
    cap: Float[Array, "n"]
    high: Float[Array, "n"]
    reg: Float[Array, "n"]
    factor: Float[Array, "n n"]
    scale: Float[Array, ""]


def make_problem(unary, pairwise, cap) -> Problem:
    """The problem without a regulariser; its factor is NaN where A is not positive definite."""
    size = jnp.abs(pairwise - jnp.diag(jnp.diagonal(pairwise))).max()
    return Problem(
        unary,
        pairwise,
        jnp.minimum(cap, 1.0),
        jnp.where(cap >= 1, jnp.inf, cap),
        jnp.zeros_like(pairwise[0]),
        _cholesky(pairwise),
        size + unary.max() - unary.min(),
    )


def regularised(problem: Problem) -> Problem:
    """The same with a diagonal just above the rounding errors of A: of 1e-12, relatively."""
    diagonal = jnp.diagonal(problem.pairwise)
    spread = problem.unary.max() - problem.unary.min()
    size = jnp.maximum(jnp.maximum(diagonal.max(), spread), 1e-150)
    epsilon = jnp.finfo(diagonal.dtype).eps
    reg = 8 * len(diagonal) * epsilon * (diagonal + 1e-6 * size)
    return problem._replace(reg=reg, factor=_cholesky(problem.pairwise + jnp.diag(reg)))


def solve_free(
    problem: Problem, free: Bool[Array, "n"], right: Float[Array, "n k"]
) -> Float[Array, "n k"]:
    """Solve with the rows and columns of A + diag(reg) in `free`; zero elsewhere."""
    both = free[:, None] & free[None, :]
    block = jnp.where(both, problem.pairwise, 0) + jnp.diag(jnp.where(free, problem.reg, 1))
    return _solve(_cholesky(block), jnp.where(free[:, None], right, 0))


def solve_free_quickly(
    problem: Problem, free: Bool[Array, "n"], right: Float[Array, "n k"]
) -> Float[Array, "n k"]:
    """The same for a definite A (reg = 0), at the cost of the smaller side.

    Few bound indices are taken out of the whole matrix's factor by their Schur complement, few free
    ones are gathered and factorised. Shapes are static, so either goes into the smallest of a few
    compiled sizes that holds it.
    """
    n = len(free)
    if n < 64:
        return solve_free(problem, free, right)
    few_bound, few_free = (n // 20, n // 10), (n // 8, n // 3, n // 2, n - n // 4, n - n // 10)
    order = jnp.argsort(free, stable=True)  # bound indices first, free ones last
    right = jnp.where(free[:, None], right, 0)

    def without(size):
        def solve():
            take = order[:size]
            dead = ~free[take]
            unit = ((jnp.arange(n)[:, None] == take) & dead).astype(right.dtype)
            found = _solve(problem.factor, jnp.hstack([right, unit]))
            y, h = found[:, : right.shape[1]], found[:, right.shape[1] :]
            corner = jnp.where(dead[:, None] & dead[None, :], h[take], jnp.eye(size))
            y = y - h @ _solve(_cholesky(corner), jnp.where(dead[:, None], y[take], 0))
            return jnp.where(free[:, None], y, 0)

        return solve

    def gathered(size):
        def solve():
            take = order[n - size :]
            live = free[take]
            block = problem.pairwise[take[:, None], take[None, :]]
            block = jnp.where(live[:, None] & live[None, :], block, jnp.eye(size))
            found = _solve(_cholesky(block), right[take])
            return jnp.zeros_like(right).at[take].set(found)

        return solve

    count = free.sum()
    small = len(few_bound) + jnp.sum(jnp.array(few_free) < count)
    large = jnp.sum(jnp.array(few_bound) < n - count)
    branches = [without(size) for size in few_bound] + [gathered(size) for size in few_free]
    return jax.lax.switch(jnp.where(count > few_free[-1], large, small), branches)


def _cholesky(matrix):
    return jax.lax.linalg.cholesky(matrix, symmetrize_input=False)


def _solve(factor, right):
    half = jax.lax.linalg.triangular_solve(factor, right, left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(
        factor, half, left_side=True, lower=True, transpose_a=True
    )


def face(
    problem: Problem,
    sets: Int[Array, "n"],
    centre: Float[Array, "n"],
    near: Float[Array, "n"],
    solve: Callable = solve_free,
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """The minimiser with the bound indices held and no bounds on the others; and its multipliers.

    Multipliers are >= 0 at zero and <= 0 at a cap when the point is optimal.

    Args:
      sets: -1 held at zero, 1 held at the cap, 0 free (one at least), [n].
      centre: of the regulariser.
      near: any point. What is solved for is the difference from it, so the nearer it is, the
        smaller the rounding; from the solution itself this is a step of iterative refinement.
      solve: `solve_free` or `solve_free_quickly`.
    """
    free = sets == 0
    base = jnp.where(free, near, jnp.where(sets > 0, problem.high, 0))
    pull = problem.reg * (base - centre)
    residual = problem.unary - problem.pairwise @ base - pull
    mean = jnp.sum(jnp.where(free, residual, 0)) / jnp.maximum(free.sum(), 1)
    y, z = solve(problem, free, jnp.stack([residual - mean, jnp.ones_like(base)], 1)).T
    nu = (y.sum() + base.sum() - 1) / z.sum()
    move = y - nu * z
    multipliers = problem.pairwise @ move - residual + problem.reg * move + (mean + nu)
    return base + move, multipliers


def rounding(problem: Problem, x: Float[Array, "n"]) -> Float[Array, ""]:
    """Multipliers smaller than this are rounding."""
    diagonal = jnp.diagonal(problem.pairwise)
    return 1e-14 * ((diagonal * jnp.clip(x, 0, 1)).max() + problem.scale)
