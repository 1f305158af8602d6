"""Likelihoods of models on one task's examples, and divergences between them.

For a window of scored positions the last hidden states of a block of models are kept ([B r d], far
smaller than their distributions) and unembedded for a few positions at a time: logits, log-softmax
in float32, every pair reduced at once, sums by bin of examples. What exists at a time is what the
layout says (layout.py), and no distribution ever leaves the device.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from taskpgm.affinity import jsd
from taskpgm.affinity.layout import Layout
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


class ScoredModels(NamedTuple):
    """The models that are scored, a few at a time."""

    forward: Forward
    shared: Any  # the base, held once
    load: ModelsOf


# Values kept for a pair on a task, at most. More examples than that share bins, which bounds the
# store at MAX_BINS * n (n - 1) / 2 * 4 bytes for a task.
MAX_BINS = 64


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


class Block(NamedTuple):
    """What B models need to predict a window."""

    hidden: Float[Array, "B r d"]
    head: Float[Array, "*B d v"]  # one for all models, or one for each


@partial(jax.jit, static_argnames=("num_bins", "chunk", "top_k", "pairwise"))
def reduce_window(
    left: Block,
    right: Block | None,
    window: TargetWindow,
    bin_of: Int[Array, "r"],
    scale: Float[Array, "r"],
    *,
    num_bins: int,
    chunk: int,
    top_k: int | None,
    pairwise: Callable[..., Array],
) -> tuple[list[Float[Array, "_ r"]], Float[Array, "..."]]:
    """Log-probabilities of the targets under each block's models, and divergences by bin.

    Without `right`: the pairs i < j of `left` ["e p"]; else all pairs of the two ["e B C"].
    Distributions exist for `chunk` positions at a time.

    pairwise: `jsd.pairwise` or another kernel for all pairs of one block.
    """
    blocks = [left] if right is None else [left, right]
    sizes = [block.hidden.shape[0] for block in blocks]
    shape = (sizes[0] * (sizes[0] - 1) // 2,) if right is None else tuple(sizes)

    def body(k, state):
        at, total = state
        target, b, s = (
            jax.lax.dynamic_slice_in_dim(x, k * chunk, chunk)
            for x in (window.targets, bin_of, scale)
        )
        values = [
            jax.nn.log_softmax(
                logits(jax.lax.dynamic_slice_in_dim(hidden, k * chunk, chunk, 1), head)
            )
            for hidden, head in blocks
        ]
        at = [
            jax.lax.dynamic_update_slice_in_dim(a, at_targets(x, target), k * chunk, 1)
            for a, x in zip(at, values, strict=True)
        ]
        weights = jnp.where(jnp.arange(num_bins)[:, None] == b, s, 0.0)
        if top_k is not None:
            values = coarsen(values, top_k)
        pairs = pairwise if right is None else jsd.between
        return at, total + pairs(*values, weights)

    zero = [jnp.zeros(block.hidden.shape[:2], jnp.float32) for block in blocks]
    total = jnp.zeros((num_bins, *shape), jnp.float32)
    return jax.lax.fori_loop(0, (window.count + chunk - 1) // chunk, body, (zero, total))


def split(indices: Sequence[int], most: int) -> list[list[int]]:
    """Blocks of one length, at most `most`; the last one repeats its last index to fill up."""
    if not indices:
        return []
    each = -(-len(indices) // -(-len(indices) // most))
    blocks = [list(indices[at : at + each]) for at in range(0, len(indices), each)]
    return [block + [block[-1]] * (each - len(block)) for block in blocks]


def compute_block(
    models: ScoredModels, indices: Sequence[int], window: TargetWindow, group: int
) -> Block:
    """Hidden states and unembeddings of these models, computed `group` models at a time."""
    forward, shared, load = models
    hidden, head = [], []
    for part in split(indices, group):
        own = load(part)
        hidden.append(hidden_states(forward, shared, own, window))
        if not (head and forward.head_is_shared):
            head.append(unembeddings(forward, shared, own))
    size = len(indices)
    return Block(
        jnp.concatenate(hidden)[:size] if len(hidden) > 1 else hidden[0],
        jnp.concatenate(head)[:size] if len(head) > 1 else head[0],
    )


class RunningSums(NamedTuple):
    """Sums over the windows so far, in float64, added to in place."""

    log_likelihood: Float[np.ndarray, "n m"]
    divergence: Float[np.ndarray, "e n n"]  # a pair in one of its two places


def add_likelihoods(
    sums: RunningSums, window: TargetWindow, block: Sequence[int], log_prob: Float[Array, "B r"]
) -> None:
    """Adds a block's log-probabilities of a window's targets to those of their examples."""
    models, example = np.unique(block), window.example[: window.count]
    values = to_host(log_prob).astype(np.float64)[: len(models), : window.count]
    np.add.at(sums.log_likelihood.T, (example[:, None], models), values.T)


def add_divergences(
    sums: RunningSums,
    left: Sequence[int],
    right: Sequence[int] | None,
    divergence: Float[Array, "..."],
) -> None:
    """Adds a window's divergences within the block `left`, or between two blocks."""
    values, first = to_host(divergence).astype(np.float64), len(set(left))
    if right is None:
        i, j = np.triu_indices(len(left), 1)
        real = j < first  # beyond, a block only repeats its last model
        sums.divergence[:, left[0] + i[real], left[0] + j[real]] += values[:, real]
    else:
        second = len(set(right))
        place = np.s_[:, left[0] : left[0] + first, right[0] : right[0] + second]
        sums.divergence[place] += values[:, :first, :second]


def score_pairs(
    models: ScoredModels,
    left: Sequence[int],
    right: Sequence[int],
    rows: Rows,
    num_examples: int,
    layout: Layout,
    *,
    top_k: int | None = None,
    pairwise: Callable[..., Array] = jsd.pairwise,
) -> tuple[Float[np.ndarray, "n m"], Float[np.ndarray, "e n n"]]:
    """Scores on one task's held-out examples; models are `left`, then `right`.

    Returns:
      Log-likelihoods of all models, sums over response tokens, nats; and divergences of all pairs
      among `left` and of `left` with `right`, NaN for pairs within `right`, nats. A divergence is
      the mean over an example's response positions, then over the examples of its bin.
    """
    of, count = bins(num_examples, layout.bins)
    tokens, names = response_tokens(rows, num_examples), [*left, *right]
    left_blocks = split(range(len(left)), layout.models_per_block)
    right_blocks = split(range(len(left), len(names)), layout.models_per_block)

    def reductions() -> Iterator[tuple]:
        for window in target_windows(rows, layout.batch_size, layout.scored_per_window):
            example, on_device = window.example, jax.device_put(window)
            scale = (1.0 / (tokens[example] * count[of[example]])).astype(np.float32)
            scale[window.count :] = 0.0

            def compute(block: Sequence[int], window: TargetWindow = on_device) -> Block:
                return compute_block(models, [names[at] for at in block], window, layout.group)

            for at, block in enumerate(left_blocks):
                first = compute(block)
                for other in [None, *left_blocks[at + 1 :], *right_blocks]:
                    reduced = reduce_window(
                        first,
                        None if other is None else compute(other),
                        on_device,
                        of[example],
                        scale,
                        num_bins=layout.bins,
                        chunk=layout.positions_per_chunk,
                        top_k=top_k,
                        pairwise=pairwise,
                    )
                    yield window, block, other, reduced

    sums = RunningSums(
        np.zeros((len(names), num_examples)), np.zeros((layout.bins, len(names), len(names)))
    )
    for window, block, other, (log_probs, divergence) in one_behind(reductions()):
        if other is None:
            add_likelihoods(sums, window, block, log_probs[0])
        elif block is left_blocks[0] and other in right_blocks:
            add_likelihoods(sums, window, other, log_probs[1])
        add_divergences(sums, block, other, divergence)
    return sums.log_likelihood, finalize(sums, len(left), len(count))


def finalize(sums: RunningSums, left: int, num_bins: int) -> Float[np.ndarray, "e n n"]:
    """Symmetric divergences; the first `left` models were paired with all."""
    total = (sums.divergence + sums.divergence.transpose(0, 2, 1))[:num_bins]
    total = np.clip(total, 0.0, jsd.LN2)
    total[:, left:, left:] = np.nan
    total[:, range(total.shape[1]), range(total.shape[1])] = 0.0
    return total


def response_tokens(rows: Rows, num_examples: int) -> Int[np.ndarray, "m"]:
    """Scored tokens of each example."""
    return np.bincount(rows.example[rows.weights > 0], minlength=num_examples)
