"""Affinity matrices: pointwise mutual information and Jensen-Shannon divergence.

Both take what the models said about the same held-out examples, and give one symmetric matrix
over tasks. All is float64 on the host, except the reduction over the vocabulary (jsd.py).
"""

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Int

from taskpgm.affinity import jsd
from taskpgm.affinity.jsd import LN2

# What arguments may be: `Annotated[ArrayLike, "n m"]` names a shape that is checked inside.
ArrayLike: TypeAlias = jax.Array | np.ndarray | Sequence

# Largest tolerated |sum of probabilities - 1|, by bytes an entry: float32 log-probabilities are
# normalised to about 1e-5, bfloat16 ones have lost the third digit of every logarithm.
_MASS_TOLERANCE = {2: 5e-2, 4: 1e-3, 8: 1e-3}


def pmi(
    log_likelihood: Annotated[ArrayLike, "n m"], task: Annotated[ArrayLike, "m"]
) -> Float[np.ndarray, "n n"]:
    """S_ij = 1/2 [ mean over D_j of (l_i - l_j) + mean over D_i of (l_j - l_i) ].

    Args:
      log_likelihood: l_i of example e, nats; row i is the model of task i. Per token or per
        sequence, as the caller has normalised it.
      task: the task that each example is held out from, in 0..n-1; every task at least once.

    Returns:
      float64 ["n n"], exactly symmetric with an exactly zero diagonal; nats. An entry is at most 0
      where each of the two models is on average the better one on its own task.

    Raises:
      ValueError: wrong shapes, NaN or infinite log-likelihoods, a task with no example.

    Source: arXiv 2507.12612, pointwise mutual information between tasks.

    >>> log_likelihood = [[-1.0, -3.0], [-2.0, -1.0]]  # two models on one example of each task
    >>> pmi(log_likelihood, [0, 1])
    array([[ 0. , -1.5],
           [-1.5,  0. ]])
    """
    scores = np.asarray(log_likelihood)
    task = np.asarray(task)
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(
            f"log_likelihood must be [models, examples], both at least 1; got shape {scores.shape}"
        )
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    n, m = scores.shape
    if task.shape != (m,):
        raise ValueError(f"task must name the task of each of {m} examples; got shape {task.shape}")
    if not np.issubdtype(task.dtype, np.integer):
        raise ValueError(f"task must hold integers; got {task.dtype}")
    if task.min() < 0 or task.max() >= n:
        raise ValueError(
            f"task must lie in 0..{n - 1}, one per model; got {task.min()}..{task.max()}"
        )
    finite = np.isfinite(scores)
    if not finite.all():
        i, e = np.argwhere(~finite)[0]
        raise ValueError(
            f"log_likelihood[{i}, {e}] is {scores[i, e]}: model {i} on an example of task {task[e]}"
        )
    count = np.bincount(task, minlength=n)
    if count.min() == 0:
        raise ValueError(f"task {int(np.argmin(count))} has no held-out example, so no affinity")
    return pmi_from_means(mean_by_task(scores, task, n))


def mean_by_task(
    values: Float[np.ndarray, "n m"], task: Int[np.ndarray, "m"], tasks: int
) -> Float[np.ndarray, "n k"]:
    """Means over the examples of each task, float64; a task without examples is an error above."""
    member = np.zeros((len(task), tasks))
    member[np.arange(len(task)), task] = 1.0
    return (values.astype(np.float64) @ member) / member.sum(0)


def pmi_from_means(mean: Float[np.ndarray, "*b n n"]) -> Float[np.ndarray, "*b n n"]:
    """PMI from M_ij, the mean log-likelihood of model i on the examples of task j.

    M_ij - M_jj is what replacing the owner j by model i costs on D_j; S is its symmetric half.
    """
    own = np.diagonal(mean, axis1=-2, axis2=-1)
    gain = mean - own[..., None, :]
    return 0.5 * (gain + np.swapaxes(gain, -1, -2))


def jensen_shannon(
    log_probs: Annotated[ArrayLike, "n t v"], weights: Annotated[ArrayLike, "t"] | None = None
) -> Float[np.ndarray, "n n"]:
    """Mean over positions of JSD(p_i, p_j) = H((p_i + p_j)/2) - H(p_i)/2 - H(p_j)/2, nats.

    Args:
      log_probs: log-probabilities over the vocabulary, of n models at the same t positions. -inf
        is a probability of zero. float32 or bfloat16, with float32 arithmetic; float64 is rounded.
      weights: non-negative weights of the positions, normalised here; equal when None.

    Returns:
      float64 ["n n"], symmetric, zero diagonal, within [0, ln 2]. Error bound: kernels/jsd_term.py.

    Raises:
      ValueError: wrong shapes, NaN, +inf or rows that do not sum to one, bad weights.

    >>> p = np.log([[[0.5, 0.5]], [[0.9, 0.1]]])  # two models at one position
    >>> jensen_shannon(p).round(4)
    array([[0.    , 0.1017],
           [0.1017, 0.    ]])
    """
    values = log_probs if isinstance(log_probs, jax.Array) else np.asarray(log_probs)
    if values.ndim != 3 or 0 in values.shape:
        raise ValueError(
            "log_probs must be [models, positions, vocabulary], each at least 1; "
            f"got shape {values.shape}"
        )
    n, t, _ = values.shape
    share = np.full(t, 1.0 / t)
    if weights is not None:
        share = np.asarray(weights, np.float64)
        if share.shape != (t,):
            raise ValueError(f"weights must be one per position, [{t}]; got shape {share.shape}")
        if not np.isfinite(share).all() or share.min() < 0 or share.sum() == 0:
            raise ValueError("weights must be finite, not negative and not all zero")
        share = share / share.sum()
    mass = np.asarray(jsd.mass(values), np.float64)
    wrong = ~(np.abs(mass - 1.0) <= _MASS_TOLERANCE.get(values.dtype.itemsize, 1e-3))
    if wrong.any():
        i, position = np.argwhere(wrong)[0]
        raise ValueError(
            f"log_probs[{i}, {position}] is no distribution: its probabilities sum to "
            f"{mass[i, position]:.6g}, not 1 (log-probabilities are expected, after log_softmax)"
        )
    if n == 1:
        return np.zeros((1, 1))
    total = np.asarray(jsd.pairwise(values, share[None].astype(np.float32))[0], np.float64)
    return symmetric(np.clip(total, 0.0, LN2), n)


def symmetric(pairs: Float[np.ndarray, "*b p"], n: int) -> Float[np.ndarray, "*b n n"]:
    """The symmetric matrix, zero on the diagonal, of values for the pairs i < j in row order."""
    i, j = np.triu_indices(n, 1)
    out = np.zeros(pairs.shape[:-1] + (n, n), np.float64)
    out[..., i, j] = pairs
    out[..., j, i] = pairs
    return out


def jsd_affinity(
    divergence: Annotated[ArrayLike, "k n n"], contexts: str = "pool"
) -> Float[np.ndarray, "n n"]:
    """S_ij = 1 - JSD_ij / ln 2 from C[k, i, j]: the divergence of i and j on the examples of k.

    `pool`: JSD_ij is the mean of C[k, i, j] over every task k. The contexts are then the same for
    all pairs, and S is positive semi-definite: 1 - JSD/ln 2 is a positive definite kernel on
    distributions (Martins et al. 2009, JMLR 10, Nonextensive information theoretic kernels), and a
    fixed average of such kernels is one.
    `pair`: (C[i, i, j] + C[j, i, j]) / 2, half of the weight on each task (the paper).
    Entries in [0, 1], unit diagonal. With "pool" the k tasks may be more than the n models: the
    contexts of targets, which are judged and not mixed, join the pool.

    Raises:
      ValueError: wrong shapes, unknown `contexts`, NaN or infinite entries.

    >>> jsd_affinity([[[0.0, 0.1], [0.1, 0.0]], [[0.0, 0.3], [0.3, 0.0]]]).round(4)
    array([[1.    , 0.7115],
           [0.7115, 1.    ]])
    """
    divergence = np.asarray(divergence, np.float64)
    if divergence.ndim != 3 or divergence.shape[1] != divergence.shape[2] or not divergence.size:
        raise ValueError(f"divergence must be [contexts, n, n]; got shape {divergence.shape}")
    if contexts not in _CONTEXTS:
        raise ValueError(f"contexts must be one of {sorted(_CONTEXTS)}; got {contexts!r}")
    mean = _CONTEXTS[contexts](divergence)
    if not np.isfinite(mean).all():
        raise ValueError("divergence holds NaN or infinite entries")
    return 1.0 - np.clip(mean, 0.0, LN2) / LN2


def _pair(divergence: Float[np.ndarray, "k n n"]) -> Float[np.ndarray, "n n"]:
    k, n = divergence.shape[:2]
    if k != n:
        raise ValueError(f"'pair' needs one context task per model; got {k} for {n} models")
    own = divergence[np.arange(n), np.arange(n)]  # own[i, j] = C[i, i, j]
    return 0.5 * (own + own.T)


_CONTEXTS = {"pool": lambda divergence: divergence.mean(0), "pair": _pair}
