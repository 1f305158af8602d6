"""How sure an affinity is: examples resampled within each task, from stored scores (method 10).

No model runs again. A resample of a task's m examples is m draws with replacement, that is a vector
of multinomial weights; every resampled mean is a product of those weights with stored values.
Bootstrap and percentile intervals: Efron (1979), Annals of Statistics 7.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from taskpgm.affinity.jsd import LN2
from taskpgm.affinity.matrices import pmi_from_means
from taskpgm.affinity.scores import Scores, likelihoods


class Intervals(NamedTuple):
    """Elementwise percentiles of resampled affinities.

    A task with a single held-out example adds nothing to their width.
    """

    low: Float[np.ndarray, "*s"]
    high: Float[np.ndarray, "*s"]


def draws(examples: np.ndarray, resamples: int, seed: int, task: int) -> np.ndarray:
    """Weights ["b e"] of resampled means over bins that stand for `examples` ["e"] examples each.

    Bins are drawn, as many as there are, and keep their numbers of examples as weights.
    """
    rng = np.random.default_rng([seed, task])
    e = len(examples)
    weights = rng.multinomial(e, np.full(e, 1.0 / e), size=resamples) * examples
    return weights / weights.sum(1, keepdims=True)


def resample_pmi(
    scores: Scores, *, normalize: str = "token", resamples: int = 200, seed: int = 0
) -> Float[np.ndarray, "b n n"]:
    """PMI affinities of resampled held-out sets, float64; `normalize` as in `likelihoods`.

    >>> scores = Scores(
    ...     log_likelihood=np.array([[-1.0, -2.0, -3.0], [-2.0, -4.0, -1.0]]), base=None,
    ...     tokens=np.array([1, 1, 1]), task=np.array([0, 0, 1]), contexts=None,
    ...     divergence=lambda k: np.zeros((1, 2, 2)),
    ... )
    >>> np.unique(resample_pmi(scores)[:, 0, 1])  # of the first task's two examples two are drawn
    array([-2.  , -1.75, -1.5 ])
    """
    values = likelihoods(scores, normalize)
    means = np.empty((resamples, len(values), len(values)))
    for j in range(len(values)):
        mine = values[:, scores.task == j]
        means[:, :, j] = draws(np.ones(mine.shape[1]), resamples, seed, j) @ mine.T
    return pmi_from_means(means)


def resample_jsd(
    scores: Scores, *, resamples: int = 200, seed: int = 0
) -> Float[np.ndarray, "b n n"]:
    """JSD affinities of resampled held-out sets, float64, on the contexts that were scored.

    With the same seed a task's resamples are those of `resample_pmi`, if no bin holds two examples.

    >>> scores = Scores(
    ...     log_likelihood=np.zeros((2, 3)), base=None, tokens=np.array([1, 1, 1]),
    ...     task=np.array([0, 0, 1]), contexts="pool",
    ...     divergence=lambda k: np.full((2 - k, 2, 2), 0.2) * (1 - np.eye(2)),
    ... )
    >>> resample_jsd(scores, resamples=1).round(4)
    array([[[1.    , 0.7115],
            [0.7115, 1.    ]]])
    """
    n = scores.num_models
    tasks = scores.num_tasks if scores.contexts == "pool" else n
    mean = np.zeros((resamples, n, n))
    for k in range(tasks):
        values = scores.divergence(k)
        weights = draws(scores.examples_per_bin(k), resamples, seed, k)
        if scores.contexts == "pool":
            mean += np.tensordot(weights, values, 1) / tasks
        else:
            own = 0.5 * weights @ values[:, k]
            mean[:, k] += own
            mean[:, :, k] += own
    return 1.0 - np.clip(mean, 0.0, LN2) / LN2


def intervals(samples: Float[np.ndarray, "b *s"], level: float = 0.95) -> Intervals:
    """The central `level` of resampled affinities, entry by entry.

    >>> low, high = intervals(np.linspace(0.0, 1.0, 101)[:, None, None], level=0.9)
    >>> low.round(3), high.round(3)
    (array([[0.05]]), array([[0.95]]))
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}")
    low, high = np.quantile(samples, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    return Intervals(low, high)
