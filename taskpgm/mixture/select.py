"""Choosing k tasks: greedy on a weakly submodular value, with the guarantee that holds for it."""

import dataclasses
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int

from taskpgm.mixture.bounds import Bounds
from taskpgm.mixture.energy import Energy, as_energy, on_subspace
from taskpgm.mixture.inputs import ArrayLike
from taskpgm.mixture.qp import Problem, solve
from taskpgm.mixture.room import Room
from taskpgm.mixture.solve import solve_exact


@dataclasses.dataclass(frozen=True)
class Selection:
    """The tasks that greedy chose.

    Attributes:
      order: their indices in the order of choice, [k].
      values: f of the first 1, 2, ..., k of them, [k].
      weights: the exact mixture over them that meets caps and bounds, zero elsewhere, [n].
      energy, gap: E of these weights, and how far it is from the least over the chosen tasks.
      gamma: lower bound of the submodularity ratio, lambda_min(S~) / max_i S~_ii.
      guarantee: f of the chosen is at least this share of the best k-subset's, 1 - e^-gamma; from
        theory, and often close to 0. 0 where caps or bounds had a say in the choice, of which
        theory says nothing.
      share: f of the first 1, 2, ..., k tasks over f of all n, [k]. As no subset is worth more than
        all tasks together, this too is a guaranteed share of the best subset's value, for each k.
    """

    order: Int[np.ndarray, "k"]
    values: Float[np.ndarray, "k"]
    weights: Float[np.ndarray, "n"]
    energy: float
    gap: float
    gamma: float
    guarantee: float
    share: Float[np.ndarray, "k"]


def select_greedy(
    energy: Energy,
    k: float | int,
    cap: Annotated[ArrayLike, "n"] | None = None,
    *,
    bounds: Bounds | None = None,
) -> Selection:
    """Greedy selection of `k` tasks by f(A) = max over w >= 0 on A of u'w - 1/2 w' S~ w.

    u is the unary potential, raised by a constant to be >= 0 (on the simplex a constant changes
    nothing). f is monotone and gamma-weakly submodular (Elenberg et al. 2018; with w >= 0 as in
    Gurumoorthy et al. 2019). Each step adds the task with the largest f(A + i) - f(A), ties to the
    lower index; the gains of all tasks are read off one tableau, which a rank-one update carries
    from step to step.

    A `pairwise` that is positive definite on the subspace 1'x = 0 only (psd="simplex") is raised by
    a multiple of 11', which on the simplex is a constant: the one that makes its least eigenvalue
    half of the least one on the subspace.

    Under caps and bounds, tasks that must have weight come first, and a task is passed over where
    no k tasks with it could meet them. f itself knows no bounds, so `share` stays a guarantee.

    Args:
      k: how many tasks.
      cap, bounds: as in `solve_exact`, of the weights over the chosen tasks.
    Raises:
      ValueError: k not in 1..n, bad shapes, NaN or infinity, `pairwise` not positive definite, or
        no k tasks can meet the bounds.

    >>> select_greedy(Energy(np.array([1.0, 3.0, 2.0]), np.eye(3)), k=2).order
    array([1, 2])
    """
    energy = as_energy(energy)
    matrix, reward = np.asarray(energy.pairwise), np.asarray(energy.unary)
    if matrix.ndim != 2 or reward.ndim != 1:
        raise ValueError("select_greedy takes one energy, not a batch")
    n = len(matrix)
    if k != int(k) or not 1 <= k <= n:
        raise ValueError(f"k={k} has to be a whole number from 1 to n = {n}")
    definite, least = _definite_everywhere(matrix)
    largest = np.diag(definite).max()
    unary = reward - min(reward.min(), 0.0)

    room = Room(n, int(k), cap, bounds)
    table, free, chosen = definite.copy(), np.zeros(n, bool), np.zeros(n, bool)
    order, values, bound = [], [], bool(room.required.any())
    for step in range(int(k)):
        left = room.required & ~chosen
        shut = ~left if left.any() else np.zeros(n, bool)
        best = _best_candidate(table, free, chosen, unary, shut)
        while not room.suffices(chosen, best, int(k) - step - 1):
            shut, bound = shut | (np.arange(n) == best), True
            best = _best_candidate(table, free, chosen, unary, shut)
        chosen[best] = True
        order.append(best)
        _settle(table, free, chosen, unary)
        values.append(0.5 * float(unary @ _weights(table, free, unary)))

    # A cap of 0 keeps the others out.
    found = solve_exact(Energy(reward, matrix), np.where(chosen, room.high, 0.0), bounds=bounds)
    gamma = min(float(least / largest), 1.0)
    share = np.array(values) / max(_value_of_all(unary, definite), 1e-300)
    return Selection(
        order=np.array(order),
        values=np.array(values),
        weights=np.asarray(found.weights),
        energy=float(found.energy),
        gap=float(found.gap),
        gamma=gamma,
        guarantee=0.0 if bound else float(-np.expm1(-gamma)),
        share=np.minimum(share, 1.0) if unary.any() else np.ones(int(k)),
    )


def _definite_everywhere(matrix: Float[np.ndarray, "n n"]) -> tuple[np.ndarray, float]:
    """`matrix` plus the a 11' that makes it positive definite, and its least eigenvalue."""
    n, least = len(matrix), float(np.linalg.eigvalsh(matrix)[0])
    enough = 1e-13 * np.abs(matrix).max()
    if not least > enough and n > 1:
        least = float(np.linalg.eigvalsh(on_subspace(matrix))[0]) / 2
        if least > enough:
            # A - least I + a 11' is singular where 1 + a 1'(A - least I)^-1 1 = 0.
            inverse = np.linalg.solve(matrix - least * np.eye(n), np.ones(n))
            matrix = matrix - 1 / inverse.sum()
    if not least > enough:
        raise ValueError("pairwise is not positive definite: no selection has a finite value")
    return matrix, least


def _value_of_all(unary: Float[np.ndarray, "n"], matrix: Float[np.ndarray, "n n"]) -> float:
    """f of all tasks, by the certified solver: w >= 0 with sum at most `total` is a mixture, times
    `total`, of the tasks and one that is worth nothing; its weight shows whether `total` matters.
    """
    n = len(unary)
    wide = np.zeros((n + 1, n + 1))
    wide[:n, :n] = matrix
    total = 1.0
    while total < 1e150:
        problem = Problem(
            total * np.append(unary, 0), total**2 * wide, np.zeros(n + 1), np.ones(n + 1)
        )
        found = solve(problem)
        if found.weights[n] > 0:
            return -found.energy
        total *= 4
    raise RuntimeError("f of all tasks has no bound: report this matrix")


# The tableau of S~ solved for the free indices F: it takes (u_F, 0) to (w_F, S_ZF w_F).


def _weights(
    table: Float[np.ndarray, "n n"], free: Bool[np.ndarray, "n"], unary: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    return np.where(free, table @ np.where(free, unary, 0), 0)


def _best_candidate(
    table: Float[np.ndarray, "n n"],
    free: Bool[np.ndarray, "n"],
    chosen: Bool[np.ndarray, "n"],
    unary: Float[np.ndarray, "n"],
    shut: Bool[np.ndarray, "n"],
) -> int:
    """The task with the largest gain that is neither chosen nor shut out.

    If only w_i moves the free weights and no sign turns, the gain of i is residual^2 / (2 Schur).
    If a free weight would turn negative, that is an upper bound; it is worked out exactly only
    where the bound beats the best so far.
    """
    out = table @ np.where(free, unary, 0)
    w, residual = np.where(free, out, 0), np.where(free, 0, unary - out)
    step = np.where(chosen, 0, np.maximum(residual, 0) / np.diag(table))
    bound = 0.5 * step * residual
    moved = w[free, None] + table[free] * step
    resting = chosen & ~free
    freed = residual[resting, None] - table[resting] * step
    turned = (moved < -1e-12 * w.max(initial=0)).any(0) & (step > 0)
    woken = (freed > 1e-12 * unary.max()).any(0) & (step > 0)
    bound = np.where(chosen | shut, -1.0, np.where(woken, np.inf, bound))

    best, best_gain, base = -1, -1.0, 0.5 * float(unary @ w)
    for i in np.argsort(-bound, kind="stable").tolist():
        if bound[i] <= best_gain:
            break
        gain = bound[i]
        if turned[i] or woken[i]:
            gain = _value_with(i, table, free, chosen, unary) - base
        if gain > best_gain or (gain == best_gain and i < best):
            best, best_gain = i, gain
    return best


def _value_with(
    i: int,
    table: Float[np.ndarray, "n n"],
    free: Bool[np.ndarray, "n"],
    chosen: Bool[np.ndarray, "n"],
    unary: Float[np.ndarray, "n"],
) -> float:
    """f(A + i), by exchanges on the tableau of A + i alone."""
    some = np.flatnonzero(chosen | free)
    some = np.append(some, i)
    small, of_free = table[np.ix_(some, some)], free[some]
    _settle(small, of_free, np.ones(len(some), bool), unary[some])
    return 0.5 * float(unary[some] @ _weights(small, of_free, unary[some]))


def _settle(
    table: Float[np.ndarray, "n n"],
    free: Bool[np.ndarray, "n"],
    chosen: Bool[np.ndarray, "n"],
    unary: Float[np.ndarray, "n"],
) -> None:
    """Exchange indices of `chosen`, in place, until w >= 0 there and no residual is positive.

    Principal pivoting; the largest violation first, and after that many rounds the first one
    (Murty's rule), which ends for certain.
    """
    for round_ in range(2**20):
        out = table @ np.where(free, unary, 0)
        wrong = np.where(free, -out, unary - out)
        size = np.where(free, np.abs(out[free]).max(initial=0), unary.max(initial=0))
        wrong = np.where(chosen & (wrong > 1e-12 * size), wrong / np.maximum(size, 1e-300), 0)
        if not wrong.any():
            return
        i = int(np.argmax(wrong)) if round_ < 4 * len(free) else int(np.flatnonzero(wrong)[0])
        column, row, pivot = table[:, i].copy(), table[i].copy(), table[i, i]
        table -= np.outer(column / pivot, row)
        table[:, i], table[i], table[i, i] = column / pivot, -row / pivot, 1 / pivot
        free[i] = ~free[i]
    raise RuntimeError("the exchanges did not end: report this matrix")
