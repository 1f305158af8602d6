"""Every model at every held-out context: log-likelihoods and streamed divergences.

One compiled program scores all models on all tasks: batches of rows have one fixed shape, the
base is held once, and adapters (or whole models) lie side by side on a leading axis. Logits exist
only for a block of scored positions at a time.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from taskpgm.affinity import divergence, kernels


class Forward(NamedTuple):
    """What scoring asks of a model; `shared` is held once, `own` differs from model to model."""

    hidden: Callable[..., Array]  # (shared, own, tokens, positions, segment_ids) -> [b t d]
    unembedding: Callable[..., Array]  # (shared, own) -> [d v]


@lru_cache(maxsize=32)
def decoder_forward(config: Any, mode: str = "lora") -> Forward:
    """The project's decoder, with adapters on one base (`lora`) or weights of its own (`full`).

    Cached, since the compiled programs are kept by the identity of these functions.
    """
    from taskpgm.models import Decoder, unembedding

    variables = {
        "lora": lambda shared, own: {"params": shared, "lora": own},
        "full": lambda shared, own: {"params": own},
    }
    if mode not in variables:
        raise ValueError(f"mode must be one of {sorted(variables)}; got {mode!r}")
    bind, decoder = variables[mode], Decoder(config)

    def hidden(shared, own, tokens, positions, segment_ids):
        return decoder.apply(
            bind(shared, own), tokens, positions, segment_ids, deterministic=True, method="hidden"
        )

    return Forward(hidden, lambda shared, own: unembedding(config, bind(shared, own)["params"]))


class Batch(NamedTuple):
    """`b` rows, and where their scored positions are: the first `count` entries of `where`."""

    tokens: Int[np.ndarray, "b t"]
    targets: Int[np.ndarray, "b t"]
    positions: Int[np.ndarray, "b t"]
    segment_ids: Int[np.ndarray, "b t"]
    where: Int[np.ndarray, "bt"]
    count: np.int32


def batches(rows: Any, batch_size: int) -> Iterator[tuple[Batch, Int[np.ndarray, "c"]]]:
    """Fixed shapes from packed rows: the last batch is filled up with padding.

    Yields each batch with the example that every scored position belongs to.
    """
    r, t = rows.tokens.shape
    for start in range(0, r, batch_size):
        part = [np.asarray(x[start : start + batch_size]) for x in rows]
        short = batch_size - len(part[0])
        part = type(rows)(*(np.pad(x, ((0, short), (0, 0))) for x in part))
        scored = np.flatnonzero(part.weights.reshape(-1) > 0)
        where = np.zeros(batch_size * t, np.int32)
        where[: len(scored)] = scored
        yield (
            Batch(
                part.tokens,
                part.targets,
                part.positions,
                part.segment_ids,
                where,
                np.int32(len(scored)),
            ),
            part.example.reshape(-1)[scored],
        )


@partial(jax.jit, static_argnames=("forward", "chunk"))
def _target_log_probs(
    forward: Forward, shared: Any, models: Any, batch: Batch, *, chunk: int
) -> Float[Array, "g bt"]:
    """log p(target) at the scored positions of a batch, float32, `chunk` positions at a time.

    Chunks after the last scored position are not computed: prompts and padding cost no unembedding.
    """
    size = batch.where.shape[0]
    room = -(-size // chunk) * chunk
    where = jnp.pad(batch.where, (0, room - size))
    targets = batch.targets.reshape(-1)[where]

    def one(own):
        hidden = forward.hidden(shared, own, batch.tokens, batch.positions, batch.segment_ids)
        hidden = hidden.reshape(-1, hidden.shape[-1])
        table = forward.unembedding(shared, own)

        def body(k, out):
            here = jax.lax.dynamic_slice_in_dim(where, k * chunk, chunk)
            target = jax.lax.dynamic_slice_in_dim(targets, k * chunk, chunk)
            logits = jnp.dot(hidden[here], table, preferred_element_type=jnp.float32)
            at = jnp.take_along_axis(logits.astype(jnp.float32), target[:, None], axis=1)[:, 0]
            value = at - jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
            return jax.lax.dynamic_update_slice_in_dim(out, value, k * chunk, 0)

        chunks = (batch.count + chunk - 1) // chunk
        return jax.lax.fori_loop(0, chunks, body, jnp.zeros(room, jnp.float32))[:size]

    return jax.vmap(one)(models)


def score_examples(
    config: Any,
    params: Any,
    models: Any,
    rows: Any,
    num_examples: int,
    *,
    batch_size: int,
    mode: str = "lora",
    chunk: int = 128,
    forward: Forward | None = None,
) -> tuple[Float[np.ndarray, "g m"], Int[np.ndarray, "m"]]:
    """Log-likelihood of every example's response under each model of a group, and its tokens.

    Args:
      config, params: the base; `params` is unused (None) when mode is "full".
      models: adapters (`lora`) or parameters (`full`), stacked on a leading axis g.
      rows: packed rows; a position counts where its weight is above zero.
      num_examples: m; `rows.example` lies in 0..m-1.
      batch_size: rows in a batch. All calls with one batch size, row length and g share a program.
      chunk: scored positions whose logits exist at once.

    Returns:
      float64 sums over response tokens, nats, ["g m"], and the number of those tokens ["m"].
    """
    forward = forward or decoder_forward(config, mode)
    g = jax.tree.leaves(models)[0].shape[0]
    total = np.zeros((g, num_examples))
    tokens = np.zeros(num_examples, np.int64)

    def add(values, example):
        np.add.at(total.T, example, np.asarray(values)[:, : len(example)].T.astype(np.float64))

    pending = None
    for batch, example in batches(rows, batch_size):
        # Dispatch this batch before the previous one is read: copies overlap with arithmetic.
        values = _target_log_probs(forward, params, models, jax.device_put(batch), chunk=chunk)
        np.add.at(tokens, example, 1)
        if pending is not None:
            add(*pending)
        pending = values, example
    if pending is not None:
        add(*pending)
    return total, tokens


@partial(jax.jit, static_argnames=("forward",))
def _log_probs(
    forward: Forward, shared: Any, models: Any, batch: Batch, here: Int[Array, "c"]
) -> Float[Array, "g c v"]:
    def one(own):
        hidden = forward.hidden(shared, own, batch.tokens, batch.positions, batch.segment_ids)
        chosen = hidden.reshape(-1, hidden.shape[-1])[here]
        logits = jnp.dot(
            chosen, forward.unembedding(shared, own), preferred_element_type=jnp.float32
        )
        return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)

    return jax.vmap(one)(models)


def score_divergence(
    config: Any,
    params: Any,
    models: Any,
    rows: Any,
    num_examples: int,
    *,
    batch_size: int,
    mode: str = "lora",
    chunk: int = 128,
    forward: Forward | None = None,
) -> Float[np.ndarray, "m p"]:
    """Mean JSD over the response positions of each example, nats, for the model pairs i < j."""
    forward = forward or decoder_forward(config, mode)
    g = jax.tree.leaves(models)[0].shape[0]
    total = np.zeros((num_examples, g * (g - 1) // 2))
    tokens = np.zeros(num_examples, np.int64)
    for batch, example in batches(rows, batch_size):
        batch = jax.device_put(batch)
        np.add.at(tokens, example, 1)
        for start in range(0, len(example), chunk):
            here = np.zeros(chunk, np.int32)
            valid = example[start : start + chunk]
            here[: len(valid)] = np.asarray(batch.where[start : start + len(valid)])
            log_probs = _log_probs(forward, params, models, batch, here)
            for e in np.unique(valid):
                weights = np.zeros(chunk, np.float32)
                weights[: len(valid)] = valid == e
                total[e] += np.asarray(kernels.pairwise(log_probs, weights[None])[0], np.float64)
    return np.clip(total / np.maximum(tokens, 1)[:, None], 0.0, divergence.LN2)
