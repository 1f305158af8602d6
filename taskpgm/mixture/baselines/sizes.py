"""Baselines that know how many examples each task has, or only which tasks there are."""

from typing import Annotated

import numpy as np
from jaxtyping import Float

from taskpgm.mixture.inputs import ArrayLike, as_vector


def uniform(n: int) -> Float[np.ndarray, "n"]:
    """p_i = 1/n.

    >>> uniform(4)
    array([0.25, 0.25, 0.25, 0.25])
    """
    if n < 1:
        raise ValueError(f"n={n} tasks: there has to be at least 1")
    return np.full(n, 1.0 / n)


def uniform_families(family: Annotated[ArrayLike, "n"]) -> Float[np.ndarray, "n"]:
    """p_i = 1 / (families * tasks of i's family): uniform over families, then over their tasks.

    Args:
      family: a label for each task, strings or whole numbers.

    >>> uniform_families(["a", "a", "b"])
    array([0.25, 0.25, 0.5 ])
    """
    labels = np.asarray(family)
    if labels.ndim != 1 or len(labels) < 1:
        raise ValueError(f"family has shape {labels.shape}: it needs one label for each task")
    _, index, count = np.unique(labels, return_inverse=True, return_counts=True)
    return 1.0 / (len(count) * count[index])


def size_proportional(
    sizes: Annotated[ArrayLike, "n"],
    *,
    cap: float | int | None = None,
    temperature: float | int = 1.0,
) -> Float[np.ndarray, "n"]:
    """p_i ~ min(N_i, cap)^(1/temperature).

    Temperature 1 is proportional to size (examples-proportional mixing with a cap), infinity is
    uniform over the tasks that have data. Source: Raffel et al. (2020), T5, section 3.5.2; its
    settings are cap = 2^19 to 2^21 at temperature 1, or temperature = 2 to 8 with cap = 2^21.

    Args:
      sizes: examples of each task N_i, >= 0.
      cap: sizes above it count as `cap`; None for none.
      temperature: > 0.

    >>> size_proportional([100, 300], cap=200)
    array([0.33333333, 0.66666667])
    """
    counts = _counts(sizes)
    if cap is not None and not cap > 0:
        raise ValueError(f"cap={cap} has to be > 0")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} has to be > 0")
    counts = np.minimum(counts, np.inf if cap is None else cap)
    # Relative to the largest, so that no power overflows; a task without data keeps no weight.
    share = np.where(counts > 0, (counts / counts.max()) ** (1.0 / temperature), 0.0)
    return share / share.sum()


def random_instances(
    sizes: Annotated[ArrayLike, "n"], budget: int, *, seed: int = 0
) -> Float[np.ndarray, "n"]:
    """Shares of `budget` examples drawn without replacement from the union of all tasks.

    Raises:
      ValueError: a budget of less than 1, or beyond the union.

    >>> random_instances([5, 0, 5], budget=10)
    array([0.5, 0. , 0.5])
    """
    counts = _counts(sizes).astype(np.int64)
    if not 1 <= budget <= counts.sum():
        raise ValueError(f"budget={budget} has to lie in 1..{counts.sum()}, the union of the tasks")
    draw = np.random.default_rng(seed).multivariate_hypergeometric
    return draw(counts, int(budget), method="marginals") / budget


def _counts(sizes: ArrayLike) -> Float[np.ndarray, "n"]:
    counts = as_vector(sizes, "sizes")
    if counts.ndim != 1 or (counts < 0).any() or counts.sum() <= 0:
        raise ValueError("sizes have to be one vector of numbers >= 0, and one of them more")
    return counts
