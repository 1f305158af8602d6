"""The mixture that keeps every task: energy plus tau times the divergence from a prior.

F(p) = E(p) + tau * KL(p || prior) on the simplex, or the capped simplex. For small tau the exact
solution, for large tau the prior (capped); every task of the prior keeps weight in between.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import sequential_vmap
from jaxtyping import Array, Float

from taskpgm.mixture.energy import Energy, read_energy
from taskpgm.mixture.floats import in_float64, is_traced, read_array, read_vector
from taskpgm.mixture.simplex import check_caps
from taskpgm.mixture.solve import Solution, read_cap, solve_over_batch

NEWTON_STEPS = 60  # per temperature
CAP_ROUNDS = 30
COOLING = 0.1  # one temperature over the one before
TARGET = 1e-12  # gap, relative to max(1, |F|), at which a temperature counts as solved


@in_float64
def solve_entropic(
    energy: Energy,
    prior: Float[Array, "n"],
    tau: float,
    cap: Float[Array, "n"] | float | None = None,
) -> Solution:
    """The minimiser of E(p) + tau * KL(p || prior), with its own certificate.

    Newton's method in log p, cooled from a high temperature to `tau`; tasks that reach their cap
    are held there by an active set. The `gap` of the result bounds F(p) - F*, and `energy` is F(p),
    the value that was minimised: h'p + tau KL(p || q) - min over v of the same is a bound as E is
    convex, h = grad E(p), and its minimiser has a closed form, v = min(cap, s q exp(-h / tau)).

    Args:
      energy: `pairwise` positive semi-definite.
      prior: q, a mixture (uniform, or size-proportional); a task with q = 0 stays at zero.
      tau: temperature > 0, in units of the energy.
      cap: as in `solve_exact`.
    Raises:
      ValueError: as `solve_exact`, or a prior that is no mixture, or tau <= 0.
    """
    energy = read_energy(energy)
    size = energy.unary.shape[-1]
    q = read_vector(prior, "prior", size)
    tau = read_array(tau, "tau")
    if not is_traced(q) and ((q < 0).any() or (np.abs(q.sum(-1) - 1) > 1e-6).any()):
        raise ValueError("prior has to be a mixture: entries >= 0 with sum 1")
    if not is_traced(tau) and (tau.ndim or not tau > 0):
        raise ValueError(f"tau={tau} has to be one number > 0")
    cap = read_cap(cap, size)
    if not is_traced(cap, q):
        check_caps(np.where(q > 0, cap, 0))
        q = q / q.sum(-1, keepdims=True)
    found = _run(jnp.asarray(energy.unary), jnp.asarray(energy.pairwise), cap, q, tau)
    if not is_traced(found) and not np.isfinite(found.weights).all():
        raise ValueError("pairwise is not positive semi-definite: make it so first, see psd=")
    return found


@jax.jit
def _run(unary, pairwise, cap, prior, tau):
    def one(unary, pairwise, cap):
        weights, value, gap = _minimise(unary, pairwise, cap, prior, tau)
        return Solution(weights, value, gap, jnp.sum(weights > 0), "entropic")

    return solve_over_batch(one, unary, pairwise, cap)


@sequential_vmap
def _minimise(unary, pairwise, cap, prior, tau):
    """(weights, F, gap)."""
    cap = jnp.where(prior > 0, jnp.minimum(cap, 1.0), 0)
    log_q = jnp.where(prior > 0, jnp.log(jnp.where(prior > 0, prior, 1)), -jnp.inf)
    diagonal = jnp.diagonal(pairwise)
    hottest = jnp.maximum(diagonal.max(), unary.max() - unary.min())

    def at(temperature, p, held):
        return _at_temperature(unary, pairwise, cap, log_q, temperature, p, held)

    def cool(carry):
        temperature, p, held = carry
        temperature = jnp.maximum(temperature * COOLING, tau)
        return temperature, *at(temperature, p, held)

    p = _tilted(log_q, cap)
    start = (jnp.maximum(hottest, tau) / COOLING, p, (p >= cap) & (cap > 0))
    _, p, _ = jax.lax.while_loop(lambda c: c[0] > tau, cool, start)
    value, gap = _certify(unary, pairwise, cap, log_q, tau, p)
    return p, value, gap


def _at_temperature(unary, pairwise, cap, log_q, tau, p, held):
    """Newton's method with `held` tasks at their caps, until the held set is right too."""

    def round_(carry):
        p, held, _, k = carry
        p = _newton(unary, pairwise, cap, log_q, tau, p, held)
        slope = pairwise @ p - unary + tau * (_log(p) - log_q)
        level = jnp.sum(jnp.where(held, 0, p * jnp.where(p > 0, slope, 0)))
        level = level / jnp.maximum(jnp.sum(jnp.where(held, 0, p)), 1e-300)
        over = ~held & (p > cap)
        back = held & (slope > level + 1e-13 * (jnp.abs(level) + tau))
        return jnp.minimum(p, cap), (held | over) & ~back, ~(over | back).any(), k + 1

    start = (p, held, jnp.array(False), 0)
    p, held, *_ = jax.lax.while_loop(lambda c: ~c[2] & (c[3] < CAP_ROUNDS), round_, start)
    return p, held


def _newton(unary, pairwise, cap, log_q, tau, p, held):
    """min F over the tasks not held, whose weights sum to what the held ones leave."""
    live = ~held & jnp.isfinite(log_q)
    fixed = jnp.where(held, cap, 0)
    mass = 1 - fixed.sum()

    def spread(log_p):
        """Weights proportional to exp(log_p) on the live tasks."""
        log_p = jnp.where(live, log_p, -jnp.inf)
        log_p = log_p - jax.nn.logsumexp(log_p) + jnp.log(mass)
        return log_p, jnp.where(live, jnp.exp(log_p), fixed)

    def objective(p, log_p):
        kl = jnp.sum(jnp.where(live, p * (log_p - log_q), 0))
        return 0.5 * p @ (pairwise @ p) - unary @ p + tau * kl

    def step(carry):
        log_p, p, value, _, k = carry
        slope = pairwise @ p - unary + tau * jnp.where(live, log_p - log_q, 0)
        slope = slope - jnp.sum(jnp.where(live, slope * p, 0)) / mass
        # Scaled by sqrt p, the system stays well conditioned as weights vanish.
        root = jnp.where(live, jnp.sqrt(p), 0)
        matrix = root[:, None] * pairwise * root + tau * jnp.eye(len(p))
        factor = (jax.lax.linalg.cholesky(matrix, symmetrize_input=False), True)
        y, z = jax.scipy.linalg.cho_solve(factor, jnp.stack([root * slope, root], 1)).T
        nu = -(root @ y) / (root @ z)
        dp = -root * (y + nu * z)
        d_log = jnp.where(live, -(slope + nu + pairwise @ dp) / tau, 0)
        # A weight that vanishes may go all the way at once; one that grows, by what stays small.
        d_log = jnp.minimum(d_log, jnp.maximum(2.0, -5.0 - log_p))
        decrease = -jnp.sum(jnp.where(live, slope, 0) * dp)

        def shorter(c):
            t, *_ = c
            t = t / 2
            moved = spread(log_p + t * d_log)
            return t, *moved, objective(moved[1], moved[0])

        # In log p no step leaves the simplex; one that raises F is halved.
        rises = lambda c: (c[3] > value - 1e-4 * c[0] * decrease) & (c[0] > 1e-8)  # noqa: E731
        t, new_log, new_p, new_value = jax.lax.while_loop(
            rises, shorter, shorter((2.0, log_p, p, value))
        )
        better = new_value <= value
        log_p, p = jnp.where(better, new_log, log_p), jnp.where(better, new_p, p)
        done = ~better | (decrease <= 1e-16 * jnp.maximum(1e-300, jnp.abs(value)))
        return log_p, p, jnp.minimum(value, new_value), done, k + 1

    log_p, p = spread(jnp.where(live, jnp.maximum(_log(p), log_q - 600), 0))
    start = (log_p, p, objective(p, log_p), jnp.array(False), 0)
    out = jax.lax.while_loop(lambda c: ~c[3] & (c[4] < NEWTON_STEPS), step, start)
    return out[1]


def _log(p):
    return jnp.log(jnp.maximum(p, 1e-300))


def _tilted(log_a: Float[Array, "n"], cap: Float[Array, "n"]) -> Float[Array, "n"]:
    """min(cap, s a) with the s that makes it sum to 1, for a = exp(log_a)."""
    # In increasing order of cap / a, tasks reach their caps one after the other as s grows.
    key = jnp.where(cap > 0, jnp.log(jnp.maximum(cap, 1e-300)) - log_a, jnp.inf)
    order = jnp.argsort(key)
    log_a_sorted, cap_sorted, key = log_a[order], cap[order], key[order]
    left = 1 - (jnp.cumsum(cap_sorted) - cap_sorted)
    tail = jax.lax.cumlogsumexp(log_a_sorted, reverse=True)
    log_s = jnp.log(jnp.maximum(left, 1e-300)) - tail
    # The first task that does not reach its cap, were it and all later ones below theirs.
    first = jnp.argmax((log_s <= key) & (left > 0))
    some = ((log_s <= key) & (left > 0)).any()
    log_s = jnp.where(some, log_s[first], jnp.inf)
    return jnp.where(cap > 0, jnp.minimum(cap, jnp.exp(jnp.minimum(log_s + log_a, 1.0))), 0)


def _certify(unary, pairwise, cap, log_q, tau, p):
    """F(p), and the bound on F(p) - F*."""
    pull = pairwise @ p
    h = pull - unary
    h = h - jnp.sum(h * p)
    v = _tilted(log_q - h / tau, cap)

    def linear(v):
        kl = jnp.sum(jnp.where(v > 0, v * (_log(v) - jnp.where(v > 0, log_q, 0)), 0))
        return jnp.sum(h * v) + tau * kl

    at_p = linear(p)
    value = 0.5 * p @ pull - unary @ p + at_p - jnp.sum(h * p)
    return value, jnp.maximum(at_p - linear(v), 0)
