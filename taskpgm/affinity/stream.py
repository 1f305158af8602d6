"""Divergences between models, reduced as their distributions stream by.

For a window of scored positions the last hidden states of a block of models are kept ([B r d], far
smaller than their distributions) and unembedded for a few positions at a time: logits, log-softmax
in float32, every pair reduced at once, sums by bin of examples. What exists at a time is what the
layout says (budget.py), and no distribution ever leaves the device.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from taskpgm.affinity import kernels
from taskpgm.affinity.budget import Layout
from taskpgm.affinity.divergence import LN2
from taskpgm.affinity.pairs import pairwise
from taskpgm.models import to_host
from taskpgm.models.scoring import (
    Forward,
    TargetWindow,
    at_targets,
    hidden_states,
    logits,
    one_behind,
    target_windows,
    unembeddings,
)
from taskpgm.tasks import Rows

ModelsOf = Callable[[Sequence[int]], Any]  # indices -> the models, stacked on a leading axis


class Bins(NamedTuple):
    """Examples of a task in at most a given number of bins; a bin stands for their mean."""

    of: Int[np.ndarray, "m"]  # bin of each example
    count: Int[np.ndarray, "e"]  # examples in each bin


def bins(num_examples: int, most: int) -> Bins:
    """Example i in bin i mod `most`: with no more examples than that, one each."""
    of = np.arange(num_examples) % most
    return Bins(of, np.bincount(of, minlength=min(num_examples, most)))


def coarsen(values: Sequence[Float[Array, "_ c v"]], k: int) -> list[Array]:
    """Log-probabilities of the k entries that any model finds most likely, then of the rest.

    The same k entries for all models at a position. Merging outcomes can only bring distributions
    closer (data processing inequality): every JSD of the result is a lower bound. On the quickstart
    (27 adapters, 1024 entries, mean JSD 0.147 nats) the bound is low by 0.070, 0.038, 0.015 and
    0.004 nats on average for k = 4, 16, 64 and 256 (experiments/vocab_top_k.py): flat distributions
    like those of a small model need a large k.
    """
    peak = jnp.stack([x.max(0) for x in values]).max(0)
    _, ids = jax.lax.top_k(peak, k)

    def merge(x):
        top = jnp.take_along_axis(x, ids[None], axis=-1)
        rest = jnp.exp(x).sum(-1) - jnp.exp(top).sum(-1)
        return jnp.concatenate([top, jnp.log(jnp.maximum(rest, 0.0))[..., None]], axis=-1)

    return [merge(x) for x in values]


@partial(jax.jit, static_argnames=("most", "span", "top_k"))
def _reduce(
    left: tuple[Array, Array],
    right: tuple[Array, Array] | None,
    window: TargetWindow,
    bin_of: Int[Array, "r"],
    scale: Float[Array, "r"],
    *,
    most: int,
    span: int,
    top_k: int | None,
) -> tuple[list[Float[Array, "B r"]], Float[Array, "..."]]:
    """Log-probabilities of the targets under each block's models, and divergences by bin.

    left, right: (hidden [B r d], head) of two blocks of models. Without `right`: the pairs i < j of
    `left` ["most p"]; else all pairs of the two ["most B B"].
    """
    blocks = [left] if right is None else [left, right]
    sizes = [hidden.shape[0] for hidden, _ in blocks]
    shape = (sizes[0] * (sizes[0] - 1) // 2,) if right is None else tuple(sizes)

    def body(k, state):
        at, total = state
        target, b, s = (
            jax.lax.dynamic_slice_in_dim(x, k * span, span) for x in (window.targets, bin_of, scale)
        )
        values = [
            jax.nn.log_softmax(
                logits(jax.lax.dynamic_slice_in_dim(hidden, k * span, span, 1), head)
            )
            for hidden, head in blocks
        ]
        at = [
            jax.lax.dynamic_update_slice_in_dim(a, at_targets(x, target), k * span, 1)
            for a, x in zip(at, values, strict=True)
        ]
        weights = jnp.where(jnp.arange(most)[:, None] == b, s, 0.0)
        if top_k is not None:
            values = coarsen(values, top_k)
        pairs = pairwise if right is None else kernels.between
        return at, total + pairs(*values, weights)

    zero = [jnp.zeros(hidden.shape[:2], jnp.float32) for hidden, _ in blocks]
    total = jnp.zeros((most, *shape), jnp.float32)
    return jax.lax.fori_loop(0, (window.count + span - 1) // span, body, (zero, total))


class Context(NamedTuple):
    """Results on one task's examples for the models asked for; NaN where a pair was not."""

    log_likelihood: Float[np.ndarray, "n m"]
    tokens: Int[np.ndarray, "m"]
    divergence: Float[np.ndarray, "e n n"]  # mean of each bin, nats
    count: Int[np.ndarray, "e"]


def split(indices: Sequence[int], most: int) -> list[list[int]]:
    """Blocks of one length, at most `most`; the last one repeats its last index to fill up."""
    if not indices:
        return []
    each = -(-len(indices) // -(-len(indices) // most))
    blocks = [list(indices[at : at + each]) for at in range(0, len(indices), each)]
    return [block + [block[-1]] * (each - len(block)) for block in blocks]


def _block(
    forward: Forward,
    shared: Any,
    models_of: ModelsOf,
    indices: Sequence[int],
    window: TargetWindow,
    group: int,
) -> tuple[Float[Array, "B r d"], Float[Array, "*B d v"]]:
    """What a block of models needs to predict a window, computed `group` models at a time."""
    hidden, head = [], []
    for part in split(indices, group):
        models = models_of(part)
        hidden.append(hidden_states(forward, shared, models, window))
        if not (head and forward.head_is_shared):
            head.append(unembeddings(forward, shared, models))
    size = len(indices)
    hidden = jnp.concatenate(hidden)[:size] if len(hidden) > 1 else hidden[0]
    return hidden, jnp.concatenate(head)[:size] if len(head) > 1 else head[0]


class Sums(NamedTuple):
    """What the first windows of a task's examples have added up to: from here on others go on."""

    windows: int
    log_likelihood: Float[np.ndarray, "n m"]
    divergence: Float[np.ndarray, "e n n"]  # a pair in one of its two places, weighed by bin


def accumulate(
    forward: Forward,
    shared: Any,
    models_of: ModelsOf,
    new: Sequence[int],
    old: Sequence[int],
    rows: Rows,
    num_examples: int,
    layout: Layout,
    *,
    top_k: int | None = None,
    begin: Sums | None = None,
) -> Iterator[Sums]:
    """All pairs among the models `new`, and of `new` with `old`, on one task's held-out examples.

    Yields the sums after each window, in float64, always the same arrays; `begin` are those that an
    earlier call had come to. A JSD is the mean over an example's response positions, then over the
    examples of its bin. Log-likelihoods come along for all. Axes of models: `new`, then `old`.
    """
    of, count = bins(num_examples, layout.bins)
    tokens = response_tokens(rows, num_examples)
    names = [*new, *old]
    places = split(range(len(new)), layout.models)
    others = split(range(len(new), len(names)), layout.models)
    sums = begin or Sums(
        0, np.zeros((len(names), num_examples)), np.zeros((layout.bins, len(names), len(names)))
    )

    def load(block: Sequence[int], window: TargetWindow):
        return _block(forward, shared, models_of, [names[x] for x in block], window, layout.group)

    def results() -> Iterator[tuple]:
        every = target_windows(rows, layout.batch_size, layout.window)
        for number, window in islice(enumerate(every), sums.windows, None):
            example, on_device = window.example, jax.device_put(window)
            scale = (1.0 / (tokens[example] * count[of[example]])).astype(np.float32)
            scale[window.count :] = 0.0
            for i, block in enumerate(places):
                left = load(block, on_device)
                for other in [None, *places[i + 1 :], *others]:
                    right = None if other is None else load(other, on_device)
                    yield (
                        number,
                        window,
                        block,
                        other,
                        _reduce(
                            left,
                            right,
                            on_device,
                            of[example],
                            scale,
                            most=layout.bins,
                            span=layout.positions,
                            top_k=top_k,
                        ),
                    )

    def tell(window: TargetWindow, block: Sequence[int], at) -> None:
        example = window.example[: window.count]
        at = to_host(at).astype(np.float64)[: len(set(block)), : window.count]
        np.add.at(sums.log_likelihood.T, (example[:, None], np.unique(block)), at.T)

    for number, some in groupby(one_behind(results()), key=itemgetter(0)):
        # Beyond len(set(block)) a block only repeats its last model.
        for _, window, block, other, (at, pairs) in some:
            first, pairs = len(set(block)), to_host(pairs).astype(np.float64)
            if other is None:
                tell(window, block, at[0])
                i, j = np.triu_indices(len(block), 1)
                real = j < first
                sums.divergence[:, block[0] + i[real], block[0] + j[real]] += pairs[:, real]
            else:
                if block is places[0] and other in others:
                    tell(window, other, at[1])
                second = len(set(other))
                into = np.s_[:, block[0] : block[0] + first, other[0] : other[0] + second]
                sums.divergence[into] += pairs[:, :first, :second]
        yield sums._replace(windows=number + 1)


def conclude(sums: Sums, new: int, rows: Rows) -> Context:
    """The scores that all windows' sums stand for; the first `new` models were paired with all."""
    num_examples = sums.log_likelihood.shape[1]
    _, count = bins(num_examples, len(sums.divergence))
    total = sums.divergence + sums.divergence.transpose(0, 2, 1)
    total = np.clip(total, 0.0, LN2)[: len(count)]
    total[:, new:, new:] = np.nan
    total[:, range(total.shape[1]), range(total.shape[1])] = 0.0
    return Context(sums.log_likelihood, response_tokens(rows, num_examples), total, count)


def response_tokens(rows: Rows, num_examples: int) -> Int[np.ndarray, "m"]:
    return np.bincount(rows.example[rows.weights > 0], minlength=num_examples)
