"""The mixture that keeps every task: energy plus tau times the divergence from a prior.

F(p) = E(p) + tau * KL(p || prior) on the simplex, or over the mixtures that meet bounds. For small
tau the exact solution, for large tau the prior (capped); in between every task of the prior keeps
weight.
"""

from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float
from scipy.special import logsumexp

from taskpgm.mixture.bounds import Bounds, as_arrays
from taskpgm.mixture.energy import Energy, as_energy, centred
from taskpgm.mixture.entropic_bounds import BoundArrays, closest, interior
from taskpgm.mixture.inputs import ArrayLike, as_float64, as_mixture, in_float64, is_traced
from taskpgm.mixture.qp import Candidate
from taskpgm.mixture.qp.problem import cholesky, potrs
from taskpgm.mixture.simplex import check_caps
from taskpgm.mixture.solve import Solution, as_cap, solve_each

NEWTON_STEPS = 60  # per temperature
CAP_ROUNDS = 30
COOLING = 0.1  # one temperature over the one before

Vector = Float[np.ndarray, "n"]


@in_float64
def solve_entropic(
    energy: Energy,
    prior: Annotated[ArrayLike, "n"],
    tau: Annotated[ArrayLike, ""],
    cap: Annotated[ArrayLike, "*b n"] | None = None,
    *,
    bounds: Bounds | None = None,
) -> Solution:
    """The minimiser of E(p) + tau * KL(p || prior), with its own certificate.

    Newton's method in log p, cooled from a high temperature to `tau`; tasks that reach their cap
    are held there by an active set. Where other bounds bind, an interior-point method.

    `energy` of the result is F(p), the value that was minimised, and `gap` bounds F(p) - F*: as E
    is convex, h'p + tau KL(p || q) minus its minimum over mixtures is such a bound, with h =
    grad E(p), and that minimum has a closed form, s q exp(-h / tau) clipped to the bounds, with an
    s of its own for every family that is held at a bound.

    Args:
      energy: `pairwise` positive semi-definite, at least on the subspace 1'x = 0.
      prior: q, a mixture (uniform, or size-proportional); a task with q = 0 stays at zero.
      tau: temperature > 0, in units of the energy.
      cap, bounds: as in `solve_exact`.
    Raises:
      ValueError: as `solve_exact`, or a prior that is no mixture, or tau <= 0.

    >>> flat = Energy(np.zeros(2), np.zeros((2, 2)))
    >>> solve_entropic(flat, prior=[0.25, 0.75], tau=1.0).weights.round(6)
    array([0.25, 0.75])
    """
    energy = as_energy(energy)
    size = energy.unary.shape[-1]
    q = as_mixture(prior, "prior", size)
    temperature = as_float64(tau, "tau")
    if not is_traced(temperature) and (temperature.ndim or not temperature > 0):
        raise ValueError(f"tau={tau} has to be one number > 0")
    limit = as_cap(cap, size)
    if not is_traced(limit, q):
        check_caps(np.where(q > 0, limit, 0))
        as_arrays(bounds, size, np.where(q > 0, limit, 0).reshape(-1, size).min(0))

    def one(
        unary: Vector, pairwise: np.ndarray, q: Vector, tau: Float[np.ndarray, "1"], cap: Vector
    ) -> Candidate:
        limits = BoundArrays(*as_arrays(bounds, size, np.where(q > 0, cap, 0)))
        return _Tilted(unary, pairwise, q, limits).minimise(float(tau[0]))

    return solve_each(one, "entropic", energy, q, temperature[..., None], limit)


class _Tilted:
    """One problem: its energy, prior and bounds."""

    def __init__(
        self, unary: Vector, pairwise: np.ndarray, prior: Vector, limits: BoundArrays
    ) -> None:
        # The same energy on the simplex up to a constant, with a matrix that has no large mean.
        self.unary, self.pairwise = unary - pairwise.mean(1), centred(pairwise)
        self.constant = 0.5 * (pairwise.mean() + self.pairwise.mean())
        self.limits, self.cap = limits, limits.high[: len(prior)]
        self.live = (prior > 0) & (self.cap > 0)
        self.log_q = np.log(np.where(prior > 0, prior, 1)) + np.where(prior > 0, 0, -np.inf)

    def minimise(self, tau: float) -> Candidate:
        hottest = max(float(self.pairwise.diagonal().max()), float(np.ptp(self.unary)), tau)
        p = self.tilt(self.log_q)
        held = (p >= self.cap) & (self.cap > 0)
        temperature = hottest / COOLING
        while temperature > tau:
            temperature = max(temperature * COOLING, tau)
            p, held = self._at_temperature(temperature, p, held)
        if not self.limits.meets(p):
            p = interior(
                self.unary, np.asarray(self.pairwise), self.log_q, self.live, tau, self.limits
            )
        value, gap = self._certify(tau, p)
        return Candidate(p, value, gap, np.where(held, 1, 0))

    def tilt(self, log_a: Vector) -> Vector:
        """min(cap, s a) with the s that makes it sum to 1, for a = exp(log_a)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(self.live, np.log(self.cap) - log_a, np.inf)  # log s at the cap
        order = np.argsort(reach, kind="stable")
        # As s grows, tasks reach their caps in this order; the others share what is left.
        left = 1 - (np.cumsum(self.cap[order]) - self.cap[order])
        tail = np.logaddexp.accumulate(log_a[order][::-1])[::-1]
        log_s = np.log(np.maximum(left, 1e-300)) - tail
        below = np.flatnonzero((log_s <= reach[order]) & (left > 0) & np.isfinite(tail))
        if not len(below):
            return self.cap.copy()
        with np.errstate(over="ignore"):
            raised = np.exp(np.minimum(log_s[below[0]] + log_a, 1.0))
        return np.where(self.live, np.minimum(self.cap, raised), 0)

    def _slope(self, tau: float, p: Vector) -> Vector:
        """Of F at p; meaningless where there is no prior."""
        divergence = np.log(np.maximum(p, 1e-300)) - np.where(self.live, self.log_q, 0)
        return np.asarray(self.pairwise @ p - self.unary + tau * divergence)

    def _at_temperature(
        self, tau: float, p: Vector, held: Bool[np.ndarray, "n"]
    ) -> tuple[Vector, Bool[np.ndarray, "n"]]:
        """Newton's method with `held` tasks at their caps, until the held set is right too."""
        for _ in range(CAP_ROUNDS):
            free = self.live & ~held
            if free.any():
                p = self._newton(tau, p, free)
            slope = self._slope(tau, p)
            level = float(slope[free] @ p[free]) / max(float(p[free].sum()), 1e-300)
            over = free & (p > self.cap)
            back = held & (slope > level + 1e-13 * (abs(level) + tau)) if free.any() else over
            p, held = np.minimum(p, self.cap), (held | over) & ~back
            if not (over | back).any():
                break
        return p, held

    def _newton(self, tau: float, p: Vector, free: Bool[np.ndarray, "n"]) -> Vector:
        """min F over the free tasks, whose weights sum to what the held ones leave."""
        some = np.flatnonzero(free)
        fixed = np.where(free, 0, np.where(self.live, self.cap, 0))
        mass, a = 1 - fixed.sum(), self.pairwise[np.ix_(some, some)]
        u, log_q = (self.unary - self.pairwise @ fixed)[some], self.log_q[some]

        def spread(log_x: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
            """Normalised log weights, the weights, and F of them up to a constant."""
            log_x = log_x - logsumexp(log_x) + np.log(mass)
            x = np.exp(log_x)
            return log_x, x, float(0.5 * x @ a @ x - u @ x + tau * (x @ (log_x - log_q)))

        log_x, x, value = spread(np.maximum(np.log(np.maximum(p[some], 1e-300)), log_q - 600))
        for _ in range(NEWTON_STEPS):
            slope = a @ x - u + tau * (log_x - log_q)
            slope -= slope @ x / mass
            # Scaled by sqrt x, the system stays well conditioned as weights vanish.
            root = np.sqrt(x)
            factor = cholesky(root[:, None] * a * root + tau * np.eye(len(x)))
            if factor is None:
                raise ValueError(
                    "pairwise is not positive semi-definite: make it so first, see psd="
                )
            y, z = potrs(factor, np.stack([root * slope, root], 1), lower=0)[0].T
            nu = -(root @ y) / (root @ z)
            dx = -root * (y + nu * z)
            d_log = -(slope + nu + a @ dx) / tau
            # A weight may vanish at once, and grow by what stays small.
            d_log = np.minimum(d_log, np.maximum(2.0, -5.0 - log_x))
            decrease = -float(slope @ dx)
            # In log x no step leaves the simplex; one that raises F is halved.
            t, new = 1.0, spread(log_x + d_log)
            while new[2] > value - 1e-4 * t * decrease and t > 1e-8:
                t /= 2
                new = spread(log_x + t * d_log)
            if new[2] > value:
                break
            log_x, x, value = new
            if decrease <= 1e-16 * max(1e-300, abs(value)):
                break
        p = fixed
        p[some] = x
        return p

    def _certify(self, tau: float, p: Vector) -> tuple[float, float]:
        """F(p), and the bound on F(p) - F*."""
        pull = self.pairwise @ p
        h = pull - self.unary
        h -= h @ p

        def linear(v: Vector) -> float:
            some = v > 0
            divergence = np.log(v[some]) - self.log_q[some]
            return float(h @ v + tau * (v[some] @ divergence))

        at_p = linear(p)
        aim = self.log_q - h / tau
        best = linear(self.tilt(aim) if self.limits.only_caps else closest(aim, self.limits))
        value = 0.5 * float(p @ pull) - float(self.unary @ p) + at_p - float(h @ p)
        return float(value - self.constant), max(at_p - best, 0.0)
