"""Every model at every held-out context: hidden states at scored positions, and log-likelihoods.

One compiled program scores all models on all tasks: windows of packed rows have one fixed shape,
the base is held once, and adapters (or whole models) lie side by side on a leading axis. Only
positions with a target are unembedded, and logits exist for a block of them at a time.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Int

from taskpgm.models import Decoder, DecoderConfig, to_host, trained_variables, unembedding
from taskpgm.tasks import Rows
from taskpgm.training import ShardingRules
from taskpgm.training.activations import kept_by_rows


class Forward(NamedTuple):
    """What scoring asks of a model; `shared` is held once, `own` differs from model to model."""

    hidden: Callable[..., Array]  # (shared, own, tokens, positions, segment_ids) -> [b t d]
    head: Callable[..., Array]  # (shared, own) -> [d v]
    head_is_shared: bool  # then `own` may be None


@lru_cache(maxsize=32)
def decoder_forward(config: DecoderConfig) -> Forward:
    """The project's decoder: adapters on one base if the config has them, else whole models.

    Cached, since compiled programs are kept by the identity of these functions.
    """
    decoder = Decoder(config)

    def hidden(shared, own, tokens, positions, segment_ids):
        variables = trained_variables(config, own, shared)
        return decoder.apply(variables, tokens, positions, segment_ids, method="hidden")

    def head(shared, own):
        return unembedding(config, trained_variables(config, own, shared)["params"])

    return Forward(hidden, head, head_is_shared=config.lora is not None)


class Window(NamedTuple):
    """Some rows, and a run of their scored positions: the first `count` entries of `where`."""

    tokens: Int[np.ndarray, "b t"]
    positions: Int[np.ndarray, "b t"]
    segment_ids: Int[np.ndarray, "b t"]
    where: Int[np.ndarray, "r"]  # flat positions in [b t]
    targets: Int[np.ndarray, "r"]
    example: Int[np.ndarray, "r"]
    count: Int[np.ndarray, ""]


def windows(rows: Rows, batch_size: int, size: int) -> Iterator[Window]:
    """Fixed shapes from packed rows: at most `size` scored positions of `batch_size` rows each.

    The last rows are filled up with padding; rows without a scored position are left out.
    """
    keep = np.flatnonzero((rows.weights > 0).any(1))
    for start in range(0, len(keep), batch_size):
        here = keep[start : start + batch_size]
        short = ((0, batch_size - len(here)), (0, 0))
        part = Rows(*(np.pad(np.asarray(x)[here], short) for x in rows))
        scored = np.flatnonzero(part.weights.reshape(-1) > 0)
        for first in range(0, len(scored), size):
            some = scored[first : first + size]
            where = np.pad(some, (0, size - len(some))).astype(np.int32)
            yield Window(
                part.tokens,
                part.positions,
                part.segment_ids,
                where,
                part.targets.reshape(-1)[where],
                part.example.reshape(-1)[where],
                np.asarray(len(some), np.int32),
            )


def over_devices() -> NamedSharding | None:
    """How rows [b t] lie on the devices of the mesh in force (`jax.set_mesh`), if there is one."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else ShardingRules().sharding(mesh, ("batch", "length"))


@partial(jax.jit, static_argnames="forward")
def hidden_states(
    forward: Forward, shared: Any, models: Any, window: Window
) -> Float[Array, "g r d"]:
    """The models' last hidden states at the scored positions of a window."""
    rows = over_devices()

    def one(own):
        with kept_by_rows(rows, window.tokens.shape):
            x = forward.hidden(shared, own, window.tokens, window.positions, window.segment_ids)
        return x.reshape(-1, x.shape[-1])[window.where]

    # One model's products fill the cores of a CPU, where small batched ones are slow (eight
    # adapters of rank 8 side by side: 1.4 times as long). An accelerator has room for them.
    return jax.lax.platform_dependent(
        models, cpu=lambda models: jax.lax.map(one, models), default=jax.vmap(one)
    )


@partial(jax.jit, static_argnames="forward")
def heads(forward: Forward, shared: Any, models: Any) -> Float[Array, "*g d v"]:
    """The unembedding: one [d v] if the models share it, else one for each."""
    if forward.head_is_shared:
        return forward.head(shared, None)
    return jax.vmap(lambda own: forward.head(shared, own))(models)


def log_probs(hidden: Float[Array, "g c d"], head: Float[Array, "*g d v"]) -> Float[Array, "g c v"]:
    """Next-token log-probabilities, float32 from the logits on."""
    logits = jnp.matmul(hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)


def at_targets(values: Float[Array, "g c v"], targets: Int[Array, "c"]) -> Float[Array, "g c"]:
    return jnp.take_along_axis(values, targets[None, :, None], axis=-1)[..., 0]


@partial(jax.jit, static_argnames="chunk")
def _target_log_probs(hidden, head, targets, count, chunk: int) -> Float[Array, "g r"]:
    """log p(target), `chunk` positions at a time; chunks past the last one are not computed."""

    def body(k, out):
        here, target = (
            jax.lax.dynamic_slice_in_dim(x, k * chunk, chunk, axis)
            for x, axis in ((hidden, 1), (targets, 0))
        )
        value = at_targets(log_probs(here, head), target)
        return jax.lax.dynamic_update_slice_in_dim(out, value, k * chunk, 1)

    zero = jnp.zeros(hidden.shape[:2], jnp.float32)
    return jax.lax.fori_loop(0, (count + chunk - 1) // chunk, body, zero)


def score_examples(
    config: DecoderConfig | None,
    params: Any,
    models: Any,
    rows: Rows,
    num_examples: int,
    *,
    batch_size: int,
    chunk: int = 64,
    forward: Forward | None = None,
) -> tuple[Float[np.ndarray, "g m"], Int[np.ndarray, "m"]]:
    """Log-likelihood of every example's response under each model of a group, and its tokens.

    Args:
      config, params: the base; `params` is unused (None) where models are whole.
      models: adapters if config.lora, else parameters, stacked on a leading axis g.
      rows: packed rows; a position is scored where its weight is above zero.
      num_examples: m; `rows.example` lies in 0..m-1 where a position is scored.
      batch_size: rows at a time. Calls with one batch size, row length and g share a program.
      chunk: scored positions whose logits exist at once.
      forward: in place of the decoder that `config` describes.

    Returns:
      float64 sums over response tokens, nats, ["g m"], and the number of those tokens ["m"].
    """
    forward = forward or decoder_forward(config)
    g = jax.tree.leaves(models)[0].shape[0]
    total, tokens = np.zeros((g, num_examples)), np.zeros(num_examples, np.int64)
    head = heads(forward, params, models)
    size = -(-batch_size * rows.tokens.shape[1] // chunk) * chunk

    def results():
        for window in windows(rows, batch_size, size):
            on_device = jax.device_put(window)
            hidden = hidden_states(forward, params, models, on_device)
            yield window, _target_log_probs(hidden, head, on_device.targets, on_device.count, chunk)

    for window, values in late(results()):
        example = window.example[: window.count]
        np.add.at(tokens, example, 1)
        np.add.at(total.T, example, to_host(values)[:, : window.count].T.astype(np.float64))
    return total, tokens


def late(results: Iterator[Any]) -> Iterator[Any]:
    """The same items, each only after the next one has been asked for.

    Dispatch is asynchronous: while one result is read, the device has the next window to work on,
    and its copy is on the way.
    """
    pending = []
    for result in results:
        pending.append(result)
        if len(pending) == 2:
            yield pending.pop(0)
    yield from pending
