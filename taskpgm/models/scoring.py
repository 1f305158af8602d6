"""Log-probabilities of targets: every model of a group at every scored position of packed rows.

One compiled program scores all models on all tasks: windows of packed rows have one fixed shape,
the base is held once, and adapters (or whole models) lie side by side on a leading axis. Only
positions with a target are unembedded, and logits exist for `chunk` of them at a time.

Training has a chunked unembedding of its own (training/loss.py): it also takes the gradient of
each chunk while that chunk's logits exist.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from taskpgm.models.arrays import Array
from taskpgm.models.config import DecoderConfig
from taskpgm.models.decoder import Decoder, trained_variables, unembedding, variables
from taskpgm.models.hf_export import to_host
from taskpgm.multihost import end_if_asked
from taskpgm.progress import counted
from taskpgm.tasks import Rows

T = TypeVar("T")


class Forward(NamedTuple):
    """What scoring needs of a model. `shared` is held once; `own` differs from model to model."""

    hidden: Callable[..., Array]  # (shared, own, tokens, positions, segment_ids) -> [b t d]
    head: Callable[..., Array]  # (shared, own) -> [d v]
    head_is_shared: bool  # then `head` is called with own=None


# Cached because compiled programs are kept by the identity of a Forward's functions.
@lru_cache(maxsize=32)
def decoder_forward(config: DecoderConfig) -> Forward:
    """The decoder with adapters on one base, or with weights of its own where `config.lora` is
    None."""
    decoder = Decoder(config.side_by_side)

    def hidden(shared, own, tokens, positions, segment_ids) -> Any:
        bound = trained_variables(config, own, shared)
        return decoder.apply(bound, tokens, positions, segment_ids, method="hidden")

    def head(shared, own):
        return unembedding(config, trained_variables(config, own, shared)["params"])

    return Forward(hidden, head, head_is_shared=config.lora is not None)


@lru_cache(maxsize=32)
def one_model_forward(config: DecoderConfig) -> Forward:
    """One model whose variables are `shared`. As a group of one, `own` would be a copy of them."""
    decoder = Decoder(config)

    def hidden(shared, own, tokens, positions, segment_ids) -> Any:
        return decoder.apply(shared, tokens, positions, segment_ids, method="hidden")

    return Forward(hidden, lambda shared, own: unembedding(config, shared["params"]), True)


class TargetWindow(NamedTuple):
    """Some packed rows and some of their scored positions: the first `count` of `where`."""

    tokens: Int[np.ndarray, "b t"]
    positions: Int[np.ndarray, "b t"]
    segment_ids: Int[np.ndarray, "b t"]
    where: Int[np.ndarray, "r"]  # flat positions in [b t]
    targets: Int[np.ndarray, "r"]
    example: Int[np.ndarray, "r"]
    count: Int[np.ndarray, ""]


def target_windows(rows: Rows, batch_size: int, size: int) -> Iterator[TargetWindow]:
    """Fixed shapes from packed rows: at most `size` scored positions of `batch_size` rows each.

    The last rows are filled up with padding; rows without a scored position are left out.
    """
    keep = np.flatnonzero((rows.weights > 0).any(1))
    for start in range(0, len(keep), batch_size):
        batch = keep[start : start + batch_size]
        short = ((0, batch_size - len(batch)), (0, 0))
        part = Rows(*(np.pad(np.asarray(x)[batch], short) for x in rows))
        scored = np.flatnonzero(part.weights.reshape(-1) > 0)
        for first in range(0, len(scored), size):
            run = scored[first : first + size]
            where = np.pad(run, (0, size - len(run))).astype(np.int32)
            yield TargetWindow(
                part.tokens,
                part.positions,
                part.segment_ids,
                where,
                part.targets.reshape(-1)[where],
                part.example.reshape(-1)[where],
                np.asarray(len(run), np.int32),
            )


@partial(jax.jit, static_argnames="forward")
def hidden_states(
    forward: Forward, shared: Any, models: Any, window: TargetWindow
) -> Float[Array, "g r d"]:
    """The models' last hidden states at the scored positions of a window."""

    def one(own):
        x = forward.hidden(shared, own, window.tokens, window.positions, window.segment_ids)
        return x.reshape(-1, x.shape[-1])[window.where]

    # One model's products fill the cores of a CPU, where small batched ones are slow (eight
    # adapters of rank 8 side by side: 1.4 times as long). An accelerator has room for them.
    return jax.lax.platform_dependent(
        models, cpu=lambda models: jax.lax.map(one, models), default=jax.vmap(one)
    )


@partial(jax.jit, static_argnames="forward")
def unembeddings(forward: Forward, shared: Any, models: Any) -> Float[Array, "*g d v"]:
    """The unembedding: one [d v] if the models share it, else one for each."""
    if forward.head_is_shared:
        return forward.head(shared, None)
    return jax.vmap(lambda own: forward.head(shared, own))(models)


def logits(hidden: Float[Array, "g c d"], head: Float[Array, "*g d v"]) -> Float[Array, "g c v"]:
    """Float32 logits; the product is taken in the dtype of `hidden`."""
    return jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def at_targets(values: Float[Array, "g c v"], targets: Int[Array, "c"]) -> Float[Array, "g c"]:
    """The entry of each position's target."""
    return jnp.take_along_axis(values, targets[None, :, None], axis=-1)[..., 0]


@partial(jax.jit, static_argnames="chunk")
def target_log_probs(
    hidden: Float[Array, "g r d"],
    head: Float[Array, "*g d v"],
    targets: Int[Array, "r"],
    count: Int[Array, ""],
    chunk: int,
) -> tuple[Float[Array, "g r"], Bool[Array, "g r"]]:
    """log p(target) in nats, and whether no entry is likelier, of the first `count` positions.

    Logits exist for `chunk` positions at a time, and r is a multiple of `chunk`. Chunks past
    `count` are not computed and hold zeros.
    """

    def body(k, out):
        part, target = (
            jax.lax.dynamic_slice_in_dim(x, k * chunk, chunk, axis)
            for x, axis in ((hidden, 1), (targets, 0))
        )
        scores = logits(part, head)
        top, chosen = scores.max(-1), at_targets(scores, target)
        normaliser = jnp.log(jnp.exp(scores - top[..., None]).sum(-1))
        found = chosen - top - normaliser, chosen >= top
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(a, x, k * chunk, 1)
            for a, x in zip(out, found, strict=True)
        )

    empty = jnp.zeros(hidden.shape[:2], jnp.float32), jnp.zeros(hidden.shape[:2], bool)
    return jax.lax.fori_loop(0, (count + chunk - 1) // chunk, body, empty)


def score_examples(
    forward: Forward,
    shared: Any,
    models: Any,
    rows: Rows,
    num_examples: int,
    *,
    batch_size: int,
    chunk: int = 64,
) -> tuple[Float[np.ndarray, "g m"], Int[np.ndarray, "m"]]:
    """Log-likelihood of every example's response under each model of a group, and its tokens.

    Args:
      forward: `decoder_forward` of the models' config.
      shared: the base's parameters; None for whole models.
      models: adapters, or parameters of whole models, stacked on a leading axis g.
      rows: packed rows; a position is scored where its weight is above zero.
      num_examples: m; `rows.example` lies in 0..m-1 where a position is scored.
      batch_size: rows at a time. Calls with one batch size, row length and g share a program.
      chunk: scored positions whose logits exist at once.

    Returns:
      float64 sums over response tokens, nats, ["g m"], and the number of those tokens ["m"].
    """
    g = jax.tree.leaves(models)[0].shape[0]
    total, tokens = np.zeros((g, num_examples)), np.zeros(num_examples, np.int64)
    head = unembeddings(forward, shared, models)
    size = -(-batch_size * rows.tokens.shape[1] // chunk) * chunk

    def results():
        for window in target_windows(rows, batch_size, size):
            on_device = jax.device_put(window)
            hidden = hidden_states(forward, shared, models, on_device)
            yield window, target_log_probs(hidden, head, on_device.targets, on_device.count, chunk)

    # A window has room for every position of its rows, so that each batch of rows is one.
    count = -(-int((rows.weights > 0).any(1).sum()) // batch_size)
    for window, (values, _) in counted(one_behind(results()), "scoring", count, unit="step"):
        example = window.example[: window.count]
        np.add.at(tokens, example, 1)
        np.add.at(total.T, example, to_host(values)[:, : window.count].T.astype(np.float64))
    return total, tokens


def score_model(
    config: DecoderConfig,
    params: Any,
    rows: Rows,
    num_examples: int,
    *,
    lora: Any = None,
    batch_size: int,
    chunk: int = 64,
) -> tuple[Float[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """`score_examples` of one model, with one adapter (no leading axis) or none."""
    total, tokens = score_examples(
        one_model_forward(config),
        variables(params, lora),
        jnp.zeros(1),  # a group of one, which has nothing of its own
        rows,
        num_examples,
        batch_size=batch_size,
        chunk=chunk,
    )
    return total[0], tokens


def one_behind(results: Iterator[T]) -> Iterator[T]:
    """The same items, each only after the next one has been asked for.

    Dispatch is asynchronous: while one result is read, the device has the next window to work on,
    and its copy is on the way. Where a signal asks for it, the program ends between two of them.
    """
    pending: list[T] = []
    for result in results:
        end_if_asked()
        pending.append(result)
        if len(pending) == 2:
            yield pending.pop(0)
    yield from pending
