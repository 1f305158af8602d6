"""Which of several models is better, and how sure that is: intervals over seeds and tasks."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from jaxtyping import Float
from scipy.stats import norm, t

from taskpgm.records import Comparison, PairComparison

DRAWS = 4000
LEVEL = 0.95
POWER = 0.8  # the chance that a difference as large as the one measured is seen
MOST_SEEDS = 1000  # beyond which "how many" is of no use to anybody

Losses = Sequence[Mapping[str, float | None]]  # by seed and task, nats per token


def compare_runs(
    losses: Mapping[str, Losses], groups: Mapping[str, str] | None = None
) -> Comparison:
    """Every pair of runs by the difference of their mean losses.

    All runs have the same seeds and the same tasks, so differences are paired. Seeds and tasks are
    crossed, not nested: a hierarchical bootstrap draws both with replacement (Owen, "The
    pigeonhole bootstrap", 2007), the same ones for every run. Few seeds vary less among themselves
    than those they stand for, so that a deviation is widened by sqrt(n / (n - 1)) t / z, for
    seeds and for tasks each (expanded percentiles: Hesterberg, "What teachers should know about the
    bootstrap", 2015, section 5).

    Args:
      losses: by run, for each seed {task: loss}. A run that lacks one of the tasks, or whose loss
        is not finite, is left out; of the others as many seeds count as all of them have.
      groups: {task: family}: every family counts once, and families are drawn, not tasks.

    Returns:
      all pairs, the better run first. With one seed the intervals are over tasks alone, and nothing
      is said of who is best.
    """
    tasks = list(dict.fromkeys(task for each in losses.values() for s in each for task in s))
    whole = {name: table for name, each in losses.items() if (table := _table(each, tasks)).size}
    left_out = [name for name in losses if name not in whole]
    if not whole:
        return Comparison([], 0, 0, [], None, None, left_out)
    seeds = min(len(table) for table in whole.values())
    values = np.stack([table[:seeds] for table in whole.values()])
    if groups is not None:
        values = _by_group(values, [groups[task] for task in tasks])
    mean = values.mean((1, 2))
    order = np.argsort(mean, kind="stable")
    values, mean = values[order], mean[order]
    names = [list(whole)[i] for i in order]
    drawn = _draws(values)
    pairs = [
        _pair(names[i], names[j], values[i] - values[j], drawn[i] - drawn[j])
        for i, j in combinations(range(len(names)), 2)
    ]
    return Comparison(
        ranked=names,
        parts=values.shape[2],
        seeds=seeds,
        pairs=pairs,
        best=_best(names, drawn) if seeds > 1 else None,
        seeds_needed=seeds_needed(values[0].mean(1) - values[1].mean(1))
        if len(names) > 1
        else None,
        left_out=left_out,
    )


def _table(losses: Losses, tasks: Sequence[str]) -> Float[np.ndarray, "s n"]:
    """Losses by seed and task; no rows where one of them is not known."""
    values = np.array([[each.get(task) for task in tasks] for each in losses], float)
    return values if values.size and np.isfinite(values).all() else np.zeros((0, 0))


def _by_group(
    values: Float[np.ndarray, "r s n"], groups: Sequence[str]
) -> Float[np.ndarray, "r s g"]:
    """Means over the tasks of each group."""
    of = np.array(groups)
    return np.stack([values[:, :, of == group].mean(2) for group in dict.fromkeys(groups)], 2)


def _draws(values: Float[np.ndarray, "r s n"]) -> Float[np.ndarray, "r b"]:
    """The mean of every run under each draw of seeds and tasks."""
    random = np.random.default_rng(0)
    mean = values.mean((1, 2))[:, None]
    drawn = np.repeat(mean, DRAWS, 1)
    for each in (values.mean(2), values.mean(1)):  # by seed, and by task
        n = each.shape[1]
        if n > 1:
            share = random.multinomial(n, np.full(n, 1 / n), DRAWS) / n
            drawn += widening(n) * (each - mean) @ share.T
    return drawn


def widening(n: int) -> float:
    """What makes percentiles of a bootstrap of n values as wide as Student's t interval."""
    tail = (1 + LEVEL) / 2
    return float(np.sqrt(n / (n - 1)) * t.ppf(tail, n - 1) / norm.ppf(tail))


def _pair(
    first: str, second: str, values: Float[np.ndarray, "s n"], drawn: Float[np.ndarray, " b"]
) -> PairComparison:
    by_part = values.mean(0)
    known = values.size > 1  # one seed of one task says nothing of others
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return PairComparison(
        first=first,
        second=second,
        difference=float(values.mean()),
        low=low if known else None,
        high=high if known else None,
        wins=int((by_part < 0).sum()),
        ties=int((by_part == 0).sum()),
    )


def _best(names: Sequence[str], drawn: Float[np.ndarray, "r b"]) -> dict[str, float]:
    """The share of draws in which each run is the best; equals share it."""
    least = drawn.min(0)
    first = drawn <= least + 1e-12 * np.abs(least)
    return dict(zip(names, (first / first.sum(0)).mean(1).tolist(), strict=True))


def seeds_needed(differences: Float[np.ndarray, " s"]) -> int | None:
    """How many seeds would tell two runs apart on these tasks, were difference and spread over
    seeds what was measured: a t test at 5% sees it in POWER of all cases. MOST_SEEDS stands for
    more; None where one seed, or no difference, says nothing."""
    if len(differences) < 2 or differences.mean() == 0:
        return None
    ratio = abs(differences.mean()) / differences.std(ddof=1) if np.ptp(differences) else np.inf
    n = np.arange(2, MOST_SEEDS)
    enough = (t.ppf((1 + LEVEL) / 2, n - 1) + t.ppf(POWER, n - 1)) / np.sqrt(n) <= ratio
    return int(n[enough][0]) if enough.any() else MOST_SEEDS
