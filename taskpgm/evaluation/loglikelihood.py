"""Texts as windows of ids, scored token by token: what benchmarks ask of a language model."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from taskpgm.models import Decoder, DecoderConfig, unembedding, variables
from taskpgm.models.scoring import target_log_probs

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
    """Sum of the scored targets' log-probabilities (nats), and whether each is the likeliest.

    `read` is 1 for ids and 0 for padding. Only scored positions are unembedded, CHUNK at a time.
    """
    hidden = Decoder(config).apply(
        variables(params, lora), inputs, segment_ids=read, method="hidden"
    )
    # Scored positions come first, and the last chunk is filled up with padding.
    order = jnp.argsort(~scored.reshape(-1), stable=True)
    places = jnp.pad(order, (0, -len(order) % CHUNK))
    found, likeliest = target_log_probs(
        hidden.reshape(-1, hidden.shape[-1])[places][None],
        unembedding(config, params),
        targets.reshape(-1)[places],
        scored.sum(),
        chunk=CHUNK,
    )
    nats = jnp.zeros(scored.size, jnp.float32).at[order].set(found[0, : scored.size])
    same = jnp.ones(scored.size, bool).at[order].set(likeliest[0, : scored.size])
    nats, same = (x.reshape(scored.shape) for x in (nats, same))
    return jnp.where(scored, nats, 0.0).sum(1), (same | ~scored).all(1)


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
