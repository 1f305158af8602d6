"""Texts as windows of ids, scored token by token: what benchmarks ask of a language model."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from taskpgm.models import Decoder, DecoderConfig, unembedding, variables

SHORTEST = 32  # ids; windows are padded to this times a power of two, so programs are few
CHUNK = 128  # positions whose logits exist at once


class Window(NamedTuple):
    """Ids to read and the ids to score, which are the last of them, shifted by one."""

    inputs: list[int]
    targets: list[int]


@partial(jax.jit, static_argnums=0)
def score_windows(
    config: DecoderConfig,
    params: Any,
    lora: Any,
    inputs: Int[Array, "b t"],
    read: Int[Array, "b t"],
    targets: Int[Array, "b t"],
    scored: Bool[Array, "b t"],
) -> tuple[Float[Array, "b"], Bool[Array, "b"]]:
    """Sum of the scored targets' log-probabilities (nats), and whether each is the argmax.

    `read` is 1 for ids and 0 for padding. Logits exist for CHUNK positions at a time.
    """
    hidden = Decoder(config).apply(
        variables(params, lora), inputs, segment_ids=read, method="hidden"
    )
    matrix = unembedding(config, params)
    steps = -(-inputs.shape[1] // CHUNK)
    width = -(-inputs.shape[1] // steps)

    def chunked(x: Array) -> Array:
        padding = [(0, 0), (0, steps * width - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, padding)
        return x.reshape(x.shape[0], steps, width, *x.shape[2:]).swapaxes(0, 1)

    def chunk(part: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        hidden, target, scored = part
        logits = jnp.einsum(
            "btd,dv->btv", hidden, matrix, preferred_element_type=jnp.float32
        ).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        nats = chosen - jax.nn.logsumexp(logits, axis=-1)
        same = jnp.argmax(logits, axis=-1) == target
        return jnp.where(scored, nats, 0.0).sum(1), (same | ~scored).all(1)

    nats, same = jax.lax.map(chunk, (chunked(hidden), chunked(targets), chunked(scored)))
    return nats.sum(0), same.all(0)


def rolling_windows(ids: Sequence[int], prefix: int, length: int) -> Iterator[Window]:
    """Cuts a text into windows of at most `length` inputs, each id a target exactly once."""
    whole = [prefix, *ids]
    for start in range(0, len(ids), length):
        end = min(start + length, len(ids))
        yield Window(whole[max(0, end - length) : end], whole[start + 1 : end + 1])


def padded_length(length: int, limit: int) -> int:
    """The next SHORTEST * 2**k, at most `limit`."""
    padded = SHORTEST
    while padded < length:
        padded *= 2
    return min(padded, limit)
