"""Decoding with a cache of keys and values: greedy or sampled, batched, under jit.

Prompts are padded on the left to a common bucket, so that every row's next token is in one column.
The bucket lengths and the number of new tokens are rounded up to powers of two: few programs are
compiled, whatever the prompts.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from taskpgm.models.config import DecoderConfig
from taskpgm.models.decoder import Cache, Decoder, variables
from taskpgm.models.hf_export import to_host

SMALLEST_BUCKET = 16


def generate(
    config: DecoderConfig,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    lora=None,
    temperature: float = 0.0,
    key: Array | None = None,
) -> list[list[int]]:
    """The continuation of each prompt: new tokens only, up to and without the first stop id.

    temperature 0 takes the likeliest token; otherwise tokens are drawn from softmax(logits /
    temperature) by `key`. Raises ValueError for an empty prompt, for a sampled run without a key,
    and where prompt and new tokens exceed the learned positions of the model.
    """
    if not prompts:
        return []
    if min(map(len, prompts)) == 0:
        raise ValueError(f"generate: prompt {[len(p) for p in prompts].index(0)} is empty")
    if temperature > 0 and key is None:
        raise ValueError("generate: a temperature above 0 needs a key")
    longest = max(map(len, prompts))
    if config.rope_theta is None and longest + max_new_tokens > config.max_position:
        raise ValueError(
            f"generate: {longest} prompt tokens and {max_new_tokens} new ones exceed the model's"
            f" {config.max_position} positions"
        )
    tokens, segment_ids = left_pad(prompts, bucket(longest))
    stops = jnp.asarray(sorted(set(stop_ids)) or [-1], jnp.int32)
    key = jax.random.key(0) if key is None else key
    capacity = bucket(max_new_tokens)
    new, count = _decode(
        config,
        capacity,
        variables(params, lora),
        tokens,
        segment_ids,
        stops,
        temperature,
        key,
        max_new_tokens,
    )
    new, count = to_host(new), to_host(count)
    return [row[:n].tolist() for row, n in zip(new, count, strict=True)]


def bucket(length: int) -> int:
    """The next power of two, at least SMALLEST_BUCKET."""
    return max(SMALLEST_BUCKET, 1 << (length - 1).bit_length())


def left_pad(
    prompts: Sequence[Sequence[int]], length: int
) -> tuple[Int[np.ndarray, "b t"], Int[np.ndarray, "b t"]]:
    """Tokens, each row ending in the last column, and segment ids: 1 where a token is, 0 before."""
    tokens = np.zeros((len(prompts), length), np.int32)
    segment_ids = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, length - len(prompt) :] = prompt
        segment_ids[row, length - len(prompt) :] = 1
    return tokens, segment_ids


class State(NamedTuple):
    step: Int[Array, ""]
    next: Int[Array, " b"]
    new: Int[Array, "b n"]
    count: Int[Array, " b"]
    done: Bool[Array, " b"]
    cache: Cache


@partial(jax.jit, static_argnums=(0, 1))
def _decode(
    config, capacity, variables, tokens, segment_ids, stops, temperature, key, max_new_tokens
):
    """Prefill, then one token a step until every row has stopped or has max_new_tokens."""
    model = Decoder(replace(config, remat="none"))  # which would also hide that the prefill is at 0
    b, t = tokens.shape
    starts = jnp.sum(segment_ids == 0, axis=1)  # padding on the left of each row

    def extend(tokens, positions, segment_ids, cache):
        return model.apply(variables, tokens, positions, segment_ids, cache, method="extend")

    def choose(logits: Float[Array, "b v"], step) -> Int[Array, " b"]:
        greedy = jnp.argmax(logits, axis=-1)
        heat = jnp.where(temperature > 0, temperature, 1.0)
        drawn = jax.random.categorical(jax.random.fold_in(key, step), logits / heat)
        return jnp.where(temperature > 0, drawn, greedy).astype(jnp.int32)

    def going(state: State):
        return (state.step < max_new_tokens) & ~jnp.all(state.done)

    def one(state: State) -> State:
        done = state.done | jnp.any(state.next[:, None] == stops, axis=1)
        new = jax.lax.dynamic_update_slice(state.new, state.next[:, None], (0, state.step))
        count = state.count + ~done
        position = (t + state.step - starts)[:, None]
        ones = jnp.ones((b, 1), jnp.int32)
        logits, cache = extend(state.next[:, None], position, ones, state.cache)
        step = state.step + 1
        return State(step, choose(logits, step), new, count, done, cache)

    positions = jnp.maximum(jnp.arange(t) - starts[:, None], 0)
    logits, cache = extend(tokens, positions, segment_ids, empty_cache(config, b, t + capacity))
    cache = cache._replace(length=jnp.int32(t))
    state = State(
        step=jnp.int32(0),
        next=choose(logits, 0),
        new=jnp.zeros((b, capacity), jnp.int32),
        count=jnp.zeros(b, jnp.int32),
        done=jnp.zeros(b, bool),
        cache=cache,
    )
    state = jax.lax.while_loop(going, one, state)
    return state.new, state.count


def empty_cache(config: DecoderConfig, batch: int, length: int) -> Cache:
    """Room for `length` tokens of `batch` rows."""
    shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
    keys, values = jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)
    return Cache(keys, values, jnp.zeros((batch, length), jnp.int32), 0)
