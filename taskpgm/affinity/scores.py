"""What the models said about the held-out examples, and the tables that follow from it.

Models are those of tasks 0..n-1. Held-out examples are those of tasks 0..k-1 with k >= n: tasks
from n on are targets, which are judged but not mixed, so no model was trained for them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from taskpgm.affinity.matrices import mean_by_task
from taskpgm.affinity.pairwise import MAX_BINS, bins


@dataclass(frozen=True)
class Scores:
    """What n models said about m held-out examples. `compute_scores` makes them."""

    log_likelihood: Float[np.ndarray, "n m"]  # sums over response tokens, nats
    base: Float[np.ndarray, " m"] | None  # those of the base, if it was scored
    tokens: Int[np.ndarray, " m"]  # response tokens of each example
    task: Int[np.ndarray, " m"]  # the task it is held out from; from n on a target
    contexts: str | None  # as in `compute_scores`
    # JSD of all pairs by bin of a task's examples, nats; NaN where the pair was not asked for.
    # Read from the store at each call: those of hundreds of tasks do not fit into memory together.
    divergence: Callable[[int], Float[np.ndarray, "e n n"]]
    computed: tuple[tuple[int, int], ...] = ()  # (model, task) that were not stored before

    @property
    def num_models(self) -> int:
        """n, which is also the number of mixed tasks."""
        return len(self.log_likelihood)

    @property
    def num_tasks(self) -> int:
        """k: mixed tasks and targets."""
        return int(self.task.max()) + 1

    def examples_per_bin(self, k: int) -> Int[np.ndarray, " e"]:
        """How many examples of task k each value of `divergence(k)` is the mean of."""
        return bins(int((self.task == k).sum()), MAX_BINS).count

    def mean_divergence(self) -> Float[np.ndarray, "k n n"]:
        """C[k, i, j], the mean JSD of models i and j over the examples of task k, nats.

        With contexts="pool" of all tasks, targets among them; with "pair" of the mixed tasks.
        """
        tasks = range(self.num_tasks if self.contexts == "pool" else self.num_models)
        return np.stack([self.mean_divergence_of(k) for k in tasks])

    def mean_divergence_of(self, k: int) -> Float[np.ndarray, "n n"]:
        """The mean JSD of all pairs over the examples of task k, nats."""
        count = self.examples_per_bin(k)
        return np.tensordot(count / count.sum(), self.divergence(k), 1)


# What the log-likelihood of an example is taken over.
_NORMALIZE = {
    "token": lambda log_likelihood, tokens: log_likelihood / tokens,
    "sequence": lambda log_likelihood, tokens: log_likelihood,
}


def per_example(
    log_likelihood: Float[np.ndarray, "*r m"], tokens: Int[np.ndarray, " m"], normalize: str
) -> Float[np.ndarray, "*r m"]:
    """Sums over response tokens, taken by token or left as they are. See `likelihoods`."""
    if normalize not in _NORMALIZE:
        raise ValueError(f"normalize must be one of {sorted(_NORMALIZE)}; got {normalize!r}")
    return _NORMALIZE[normalize](log_likelihood, tokens)


def likelihoods(
    scores: Scores, normalize: str = "token", *, base: bool = False
) -> Float[np.ndarray, "r m"]:
    """Log-likelihoods by response token, or of the whole response: a row per model, nats.

    Args:
      normalize: "token" divides by the number of response tokens, "sequence" keeps the sum.
      base: the base's row comes first, then those of the n models.

    Raises:
      ValueError: `normalize` is neither "token" nor "sequence", or the base was not scored.

    >>> scores = Scores(
    ...     log_likelihood=np.array([[-2.0, -6.0]]), base=np.array([-4.0, -8.0]),
    ...     tokens=np.array([2, 4]), task=np.array([0, 0]), contexts=None,
    ...     divergence=lambda k: np.zeros((1, 1, 1)),
    ... )
    >>> likelihoods(scores, base=True)
    array([[-2. , -2. ],
           [-1. , -1.5]])
    """
    rows = scores.log_likelihood
    if base:
        if scores.base is None:
            raise ValueError("these scores hold no row of the base: it was not scored")
        rows = np.concatenate([scores.base[None], rows])
    return per_example(rows, scores.tokens, normalize)


def losses(
    scores: Scores, normalize: str = "token", *, base: bool = False
) -> Float[np.ndarray, "r k"]:
    """Mean loss of every model on every task, targets among them.

    Args: as for `likelihoods`.

    Returns:
      The mean over a task's examples of their losses, nats by response token or by response; rows
      as in `likelihoods`, columns are tasks.

    >>> scores = Scores(
    ...     log_likelihood=np.array([[-2.0, -6.0, -1.0]]), base=None, tokens=np.array([2, 4, 1]),
    ...     task=np.array([0, 0, 1]), contexts=None, divergence=lambda k: np.zeros((1, 1, 1)),
    ... )
    >>> losses(scores, "sequence")
    array([[4., 1.]])
    """
    values = likelihoods(scores, normalize, base=base)
    return -mean_by_task(values, scores.task, scores.num_tasks)
