"""Decoding with a cache of keys and values: greedy or sampled, batched, under jit.

Prompts are padded on the left to a common bucket, so that every row's next token is in one column.
The bucket lengths, the number of new tokens and that of stop ids are rounded up to powers of two:
few programs are compiled, whatever the prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key

from taskpgm.models.arrays import Array
from taskpgm.models.config import DecoderConfig
from taskpgm.models.decoder import Cache, Decoder, variables
from taskpgm.models.hf_export import to_host
from taskpgm.multihost import end_if_asked

SMALLEST_BUCKET = 16
CHECK_EVERY = 8  # tokens between two looks at what has been written, where somebody asks for them
LOOK_EVERY = 64  # tokens between two looks at whether the program is to end, where nobody does


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
    finished: Callable[[list[list[int]]], Sequence[bool]] | None = None,
) -> list[list[int]]:
    """The continuation of each prompt: new tokens only, up to and without the first stop id.

    finished: called every few tokens with all continuations so far; rows for which it is true are
    not continued. They may hold some tokens more than it needed.
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
    ends = sorted(set(stop_ids))
    stops = jnp.asarray(ends + [-1] * (bucket(len(ends)) - len(ends)), jnp.int32)
    draw = Draw(jnp.float32(temperature), jax.random.key(0) if key is None else key)
    bound = variables(params, lora)
    state = _prefill(config, bucket(max_new_tokens), bound, tokens, segment_ids, draw)
    every = LOOK_EVERY if finished is None else CHECK_EVERY
    for until in range(every, max_new_tokens + every, every):
        end_if_asked()
        state = _advance(config, bound, state, stops, draw, min(until, max_new_tokens))
        if until >= max_new_tokens and finished is None:
            break
        done = to_host(state.done)
        if finished is not None and not done.all():
            done = done | np.asarray(finished(_written(state)), bool)
            state = state._replace(done=jnp.asarray(done))
        if done.all():
            break
    return _written(state)


def _written(state: "State") -> list[list[int]]:
    new, count = to_host(state.new), to_host(state.count)
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


class Draw(NamedTuple):
    """How a token is taken: the likeliest at temperature 0, else drawn by the key and the step."""

    temperature: Float[Array, ""]
    key: Key[Array, ""]


class State(NamedTuple):
    step: Int[Array, ""]
    next: Int[Array, " b"]
    new: Int[Array, "b n"]
    count: Int[Array, " b"]
    done: Bool[Array, " b"]
    position: Int[Array, " b"]  # of `next` in its row
    cache: Cache


@partial(jax.jit, static_argnums=(0, 1))
def _prefill(
    config: DecoderConfig,
    capacity: int,
    variables: Any,
    tokens: Int[Array, "b t"],
    segment_ids: Int[Array, "b t"],
    draw: Draw,
) -> State:
    """Reads the prompts; `capacity` new tokens have room."""
    b, t = tokens.shape
    starts = jnp.sum(segment_ids == 0, axis=1)  # padding on the left of each row
    positions = jnp.maximum(jnp.arange(t) - starts[:, None], 0)
    cache = empty_cache(config, b, t + capacity)
    logits, cache = _extend(config, variables, tokens, positions, segment_ids, cache)
    return State(
        step=jnp.int32(0),
        next=_choose(logits, draw, 0),
        new=jnp.zeros((b, capacity), jnp.int32),
        count=jnp.zeros(b, jnp.int32),
        done=jnp.zeros(b, bool),
        position=t - starts,
        cache=cache._replace(length=jnp.int32(t)),
    )


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _advance(
    config: DecoderConfig,
    variables: Any,
    state: State,
    stops: Int[Array, " s"],
    draw: Draw,
    until: Int[Array, ""] | int,
) -> State:
    """One token a step, until every row is done or `until` steps were taken in all."""

    def going(state: State) -> Bool[Array, ""]:
        return (state.step < until) & ~jnp.all(state.done)

    def one(state: State) -> State:
        done = state.done | jnp.any(state.next[:, None] == stops, axis=1)
        new = jax.lax.dynamic_update_slice(state.new, state.next[:, None], (0, state.step))
        count = state.count + ~done
        ones = jnp.ones((len(done), 1), jnp.int32)
        logits, cache = _extend(
            config, variables, state.next[:, None], state.position[:, None], ones, state.cache
        )
        step = state.step + 1
        return State(step, _choose(logits, draw, step), new, count, done, state.position + 1, cache)

    return jax.lax.while_loop(going, one, state)


def _extend(
    config: DecoderConfig,
    variables: Any,
    tokens: Int[Array, "b t"],
    positions: Int[Array, "b t"],
    segment_ids: Int[Array, "b t"],
    cache: Cache,
) -> tuple[Float[Array, "b v"], Cache]:
    # Without remat, which would trace `cache.length`: a prefill needs it to be the Python int 0.
    decoder = Decoder(replace(config, remat="none"))
    out: Any = decoder.apply(variables, tokens, positions, segment_ids, cache, method="extend")
    return out


def _choose(
    logits: Float[Array, "b v"], draw: Draw, step: Int[Array, ""] | int
) -> Int[Array, " b"]:
    greedy = jnp.argmax(logits, axis=-1)
    heat = jnp.where(draw.temperature > 0, draw.temperature, 1.0)
    drawn = jax.random.categorical(jax.random.fold_in(draw.key, step), logits / heat)
    return jnp.where(draw.temperature > 0, drawn, greedy).astype(jnp.int32)


def empty_cache(config: DecoderConfig, batch: int, length: int) -> Cache:
    """Room for `length` tokens of `batch` rows."""
    shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
    keys, values = jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype)
    return Cache(keys, values, jnp.zeros((batch, length), jnp.int32), 0)
