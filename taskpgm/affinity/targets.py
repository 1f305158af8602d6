"""How relevant each mixed task is to targets: tasks that are judged but not mixed.

No model was trained for a target, so it is no row of an affinity matrix. It is a column of its own:
what each mixed task's model says about the target's held-out examples. In an energy these columns
take the place of S in the unary term (`judged` of `mixture.energy_from_affinity`), whose pairwise
term stays among the mixed tasks.
"""

import numpy as np
from jaxtyping import Float

from taskpgm.affinity.bootstrap import draws
from taskpgm.affinity.jsd import LN2
from taskpgm.affinity.scores import Scores, likelihoods, losses


def pmi_relevance(scores: Scores, normalize: str = "token") -> Float[np.ndarray, "n k"]:
    """R_it = mean over D_t of (l_i - l_b), for the model b that is the best one on target t.

    PMI's comparison on D_j, mean of (l_i - l_j), with the best model in place of the task's own:
    a target has none. Which model that is moves a column by a constant, so no minimiser on the
    simplex.

    Args:
      normalize: as in `likelihoods`.

    Returns:
      float64 [tasks, targets], nats; at most 0, and 0 for the best model on each target.

    Raises:
      ValueError: these scores have no target.

    >>> scores = Scores(  # two models; one example of each task, and one of a target
    ...     log_likelihood=np.array([[-1.0, -3.0, -2.0], [-2.0, -1.0, -2.5]]),
    ...     base=None, tokens=np.array([1, 1, 1]), task=np.array([0, 1, 2]), contexts=None,
    ...     divergence=lambda k: np.zeros((1, 2, 2)),
    ... )
    >>> pmi_relevance(scores)
    array([[ 0. ],
           [-0.5]])
    """
    loss = losses(scores, normalize)[:, _targets(scores)]
    return loss.min(0) - loss


def jsd_relevance(scores: Scores) -> Float[np.ndarray, "n k"]:
    """R_it = mean over models j of 1 - JSD_ij / ln 2 on the contexts of target t.

    The representativeness (S 1)_i / n of task i in the affinity matrix of only t's contexts: how
    near its model is to all models there.

    Returns:
      float64 [tasks, targets] in [0, 1].

    Raises:
      ValueError: these scores have no target, or no divergences on targets (contexts "pool").
    """
    targets = _targets(scores)
    if scores.contexts != "pool":
        raise ValueError(
            f"JSD on targets needs affinity.contexts='pool'; these scores have {scores.contexts!r}"
        )
    means = [scores.mean_divergence_of(k).mean(1) for k in range(targets.start, targets.stop)]
    return 1.0 - np.clip(np.stack(means, axis=1), 0.0, LN2) / LN2


def resample_pmi_relevance(
    scores: Scores, *, normalize: str = "token", resamples: int = 200, seed: int = 0
) -> Float[np.ndarray, "b n k"]:
    """`pmi_relevance` of resampled held-out sets, drawn as those of `resample_pmi` are."""
    values, found = likelihoods(scores, normalize), []
    for k in range(_targets(scores).start, scores.num_tasks):
        mine = values[:, scores.task == k]
        mean = draws(np.ones(mine.shape[1]), resamples, seed, k) @ mine.T
        found.append(mean - mean.max(1, keepdims=True))
    return np.stack(found, axis=2)


def resample_jsd_relevance(
    scores: Scores, *, resamples: int = 200, seed: int = 0
) -> Float[np.ndarray, "b n k"]:
    """`jsd_relevance` of resampled held-out sets, drawn as those of `resample_jsd` are."""
    found = []
    for k in range(_targets(scores).start, scores.num_tasks):
        weights = draws(scores.examples_per_bin(k), resamples, seed, k)
        found.append(np.tensordot(weights, scores.divergence(k).mean(2), 1))
    return 1.0 - np.clip(np.stack(found, axis=2), 0.0, LN2) / LN2


def _targets(scores: Scores) -> slice:
    if scores.num_tasks == scores.num_models:
        raise ValueError(
            f"all {scores.num_tasks} tasks of these scores are mixed, none is a target"
        )
    return slice(scores.num_models, scores.num_tasks)
