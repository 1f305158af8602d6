"""Who helps whom: how much of what task k gains from its own training another task's model brings.

G_ik = (b_k - L_ik) / (b_k - L_kk) for the mean held-out losses L_ik of model i on task k, and b_k,
the loss of a reference that was not trained for k. The reference decides what counts as transfer:

- the base model: all that training brings, the form of an answer among it;
- the median of the other tasks' models: form is taken out, since every model learns it in a few
  steps; but where single-task training harms other tasks, whoever harms less seems to help;
- the better of the two, task by task (`best_reference`), which falls for neither.

experiments/results/predict.md holds what each is worth in predicting trained mixtures.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Bool, Float, Int

from taskpgm.affinity.bootstrap import intervals
from taskpgm.affinity.matrices import ArrayLike

RESAMPLES = 200  # for standard errors; that of a standard error is then 5%


@dataclass(frozen=True)
class Transfer:
    """Directed transfer from n tasks to k >= n, and how sure it is.

    Tasks from n on are targets: judged, but not mixed, so without a model of their own. The best
    model stands in for it.

    Attributes:
      share: G, [n, k]: row helps column; 1 on the diagonal. A column of a task that has learnt
        nothing is zero.
      low, high: central 95% of G over resamples of the held-out examples, [n, k].
      gain: reference loss less model i's loss on each task, [n, k], nats.
      error: standard error of every gain, resampling the examples of the task, [n, k], nats.
      reference: loss of the reference on each task, [k], nats.
      learnt: whether a task's own gain exceeds its standard error, [k].
    """

    share: Float[np.ndarray, "n k"]
    low: Float[np.ndarray, "n k"]
    high: Float[np.ndarray, "n k"]
    gain: Float[np.ndarray, "n k"]
    error: Float[np.ndarray, "n k"]
    reference: Float[np.ndarray, " k"]
    learnt: Bool[np.ndarray, " k"]

    def nothing_learnt(self, names: list[str]) -> list[str]:
        """Those of `names` whose own model is no better than the reference, within its error."""
        return [name for name, learnt in zip(names, self.learnt, strict=True) if not learnt]


def transfer(
    log_likelihood: Annotated[ArrayLike, "n m"],
    task: Annotated[ArrayLike, "m"],
    reference: Annotated[ArrayLike, "k"] | None = None,
) -> Float[np.ndarray, "n k"]:
    """G_ik: the share of task k's own gain that the model of task i brings. Row helps column.

    1 on the diagonal, 0 for no transfer, negative for harm, above 1 for a better teacher than k's
    own model. A task whose own gain is within its standard error has learnt nothing: its column is
    zero (`measure_transfer` names it).

    >>> log_likelihood = [[-1.0, -3.0], [-2.0, -1.0]]  # two models on one example of each task
    >>> transfer(log_likelihood, [0, 1], reference=[-3.0, -5.0]).tolist()
    [[1.0, 0.5], [0.5, 1.0]]

    Args:
      log_likelihood: of example e under the model of task i, nats; per token or per sequence.
      task: the task that each example is held out from, from 0 on; every task at least once. From
        n on they are targets, which have no model of their own.
      reference: mean log-likelihood by task of a model that was not trained for it, such as the
        base's; None: the median of the other tasks' models.

    Returns:
      float64 ["n k"], k = n where there are no targets.

    Raises:
      ValueError: wrong shapes, NaN or infinite entries, a task without example; no reference and
        one task alone.
    """
    values, task = read_scores(log_likelihood, task)
    if reference is not None:
        reference = np.asarray(reference, np.float64)
        if reference.shape != (int(task.max()) + 1,):
            raise ValueError(
                f"reference must be one log-likelihood per task, [{int(task.max()) + 1}]; "
                f"got shape {reference.shape}"
            )
        if not np.isfinite(reference).all():
            bad = int(np.argmin(np.isfinite(reference)))
            raise ValueError(f"reference[{bad}] is {reference[bad]}: every entry must be finite")
    loss, drawn = mean_losses(values, task), resample_losses(values, task)
    if reference is None:
        return _measure(loss, median_reference(loss), drawn, median_reference(drawn)).share
    return _measure(loss, -reference, drawn, -reference).share


def measure_transfer(
    log_likelihood: Annotated[ArrayLike, "n m"],
    task: Annotated[ArrayLike, "m"],
    base: Annotated[ArrayLike, "m"] | None = None,
    tokens: Annotated[ArrayLike, "m"] | None = None,
    *,
    seed: int = 0,
) -> Transfer:
    """Transfer against the better of the base and the median of the other tasks' models.

    Args:
      log_likelihood, task: as in `transfer`.
      base: log-likelihood of every example under the base model; None: the median alone.
      tokens: as in `mean_losses`.
      seed: of the resamples that the standard errors are taken from.
    Raises:
      ValueError: as `transfer`.
    """
    values, task = read_scores(log_likelihood, task)
    n = len(values)
    if base is not None:
        base = np.asarray(base, np.float64)
        if base.shape != task.shape:
            raise ValueError(
                f"base must be one log-likelihood per example, [{len(task)}]; "
                f"got shape {base.shape}"
            )
        # The base is one more model, so that its examples are resampled with those of the others.
        values = np.concatenate([values, base[None]])
    loss = mean_losses(values, task, tokens)
    drawn = resample_losses(values, task, tokens, seed=seed)
    if base is None:
        return _measure(loss, median_reference(loss), drawn, median_reference(drawn))
    reference = best_reference(loss[:n], loss[n])
    return _measure(loss[:n], reference, drawn[:, :n], best_reference(drawn[:, :n], drawn[:, n]))


def _measure(
    loss: Float[np.ndarray, "n k"],
    reference: Float[np.ndarray, " k"],
    drawn: Float[np.ndarray, "b n k"],
    drawn_reference: Float[np.ndarray, "*c k"],
) -> Transfer:
    """`Transfer` from mean losses and the reference's, and resamples of both."""
    gain, drawn_gain = reference - loss, drawn_reference[..., None, :] - drawn
    error = drawn_gain.std(0)
    n, k = loss.shape
    owner = np.where(np.arange(k) < n, np.arange(k), loss.argmin(0))
    own = gain[owner, np.arange(k)]
    # One example has no spread to tell: then any gain counts.
    learnt = own > error[owner, np.arange(k)]
    drawn_own = drawn_gain[:, owner, np.arange(k)]
    drawn_share = _ratio(drawn_gain, drawn_own[:, None], learnt)
    low, high = intervals(drawn_share)
    return Transfer(_ratio(gain, own[None], learnt), low, high, gain, error, reference, learnt)


def _ratio(
    gain: Float[np.ndarray, "*b n k"],
    own: Float[np.ndarray, "*b #n k"],
    learnt: Bool[np.ndarray, " k"],
) -> Float[np.ndarray, "*b n k"]:
    """gain / own where a task has learnt something, 0 elsewhere; 0 / 0 in a resample is 0."""
    safe = np.where(own == 0, 1.0, own)
    return np.where(learnt, gain / safe, 0.0)


def median_reference(loss: Float[np.ndarray, "*b n k"]) -> Float[np.ndarray, "*b k"]:
    """Median loss on each task of the models of the other tasks."""
    n, k = loss.shape[-2:]
    if n == 1:
        raise ValueError("one task alone has no other models: give the base model's loss")
    others = np.where(np.eye(n, k, dtype=bool), np.nan, loss)
    return np.nanmedian(others, axis=-2)


def best_reference(
    loss: Float[np.ndarray, "*b n k"], base: Float[np.ndarray, "*b k"] | None = None
) -> Float[np.ndarray, "*b k"]:
    """The lower loss, task by task, of the base and of the median of the other tasks' models."""
    if base is not None and loss.shape[-2] == 1:
        return base
    median = median_reference(loss)
    return median if base is None else np.minimum(base, median)


def mean_losses(
    log_likelihood: Annotated[ArrayLike, "models m"],
    task: Annotated[ArrayLike, "m"],
    tokens: Annotated[ArrayLike, "m"] | None = None,
) -> Float[np.ndarray, "models k"]:
    """Mean loss of every model on each task, nats.

    Args:
      log_likelihood: of each example under each model, nats.
      task: of each example, in 0..k-1; every task at least once.
      tokens: response tokens of each example, where `log_likelihood` holds sums over them; the
        mean is then over the tokens of a task, as an evaluation has it. None: over its examples.
    """
    values, task = np.asarray(log_likelihood, np.float64), np.asarray(task)
    counts = np.ones(len(task)) if tokens is None else np.asarray(tokens, np.float64)
    of_task = [task == k for k in range(int(task.max()) + 1)]
    return np.stack([-values[:, k].sum(1) / counts[k].sum() for k in of_task], 1)


def resample_losses(
    log_likelihood: Annotated[ArrayLike, "models m"],
    task: Annotated[ArrayLike, "m"],
    tokens: Annotated[ArrayLike, "m"] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[np.ndarray, "b models k"]:
    """`mean_losses` of resampled held-out sets: examples drawn anew within each task (bootstrap).

    A resample is a vector of multinomial weights, so all of a task's are one matrix product. With
    the same seed they are those of `resample_pmi`. Source: Efron (1979), Annals of Statistics 7.
    """
    values, task = np.asarray(log_likelihood, np.float64), np.asarray(task)
    n = int(task.max()) + 1
    counts = np.ones(len(task)) if tokens is None else np.asarray(tokens, np.float64)
    out = np.empty((resamples, len(values), n))
    for k in range(n):
        mine = task == k
        m = int(mine.sum())
        rng = np.random.default_rng([seed, k])
        weights = rng.multinomial(m, np.full(m, 1.0 / m), size=resamples)
        out[:, :, k] = -(weights @ values[:, mine].T) / (weights @ counts[mine])[:, None]
    return out


def transfer_affinity(
    share: Annotated[ArrayLike, "*b n k"], importance: Annotated[ArrayLike, "k"] | None = None
) -> tuple[Float[np.ndarray, "*b n n"], Float[np.ndarray, "*b n"]]:
    """Affinity S = G diag(w) G' and unary term G w, of the positive part of G.

    With e_k(p) = sum_i p_i G_ik, the share of its own training that a mixture gives task k, the
    energy 1/2 p'Sp - (r/n) (G w)'p is 1/2 sum_k w_k (e_k(p) - r/n)^2 less a constant: each task
    should get its share. S is positive semi-definite by construction, so it needs no shift.

    Args:
      share: G, from `transfer`.
      importance: w, how much each task matters; not negative; 1/k each where None.
    Returns:
      S, symmetric, and G w.
    Raises:
      ValueError: wrong shapes, negative or non-finite importance.
    """
    share = np.asarray(share, np.float64)
    if share.ndim < 2 or not share.size:
        raise ValueError(f"share must be [n, k]; got shape {share.shape}")
    k = share.shape[-1]
    w = np.full(k, 1.0 / k) if importance is None else np.asarray(importance, np.float64)
    if w.shape != (k,) or not np.isfinite(w).all() or w.min() < 0:
        raise ValueError(f"importance must be {k} finite numbers that are not negative")
    helps = np.maximum(share, 0.0)
    half = helps * np.sqrt(w)
    return half @ np.swapaxes(half, -1, -2), helps @ w


def read_scores(
    log_likelihood: Annotated[ArrayLike, "n m"], task: Annotated[ArrayLike, "m"]
) -> tuple[Float[np.ndarray, "n m"], Int[np.ndarray, " m"]]:
    """Both as numpy arrays, checked; ValueError says what is wrong with them."""
    values, task = np.asarray(log_likelihood, np.float64), np.asarray(task)
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(
            f"log_likelihood must be [models, examples], both at least 1; got shape {values.shape}"
        )
    n, m = values.shape
    if task.shape != (m,) or not np.issubdtype(task.dtype, np.integer):
        raise ValueError(f"task must be {m} integers, one per example; got shape {task.shape}")
    if task.min() < 0:
        raise ValueError(f"task must count from 0; got {task.min()}")
    if not np.isfinite(values).all():
        i, e = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"log_likelihood[{i}, {e}] is {values[i, e]}: every entry must be finite")
    count = np.bincount(task, minlength=n)
    if count.min() == 0:
        raise ValueError(f"task {int(np.argmin(count))} has no held-out example, so no transfer")
    return values, task
