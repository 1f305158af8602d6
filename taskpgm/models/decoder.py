"""One Flax decoder for Llama, Mistral, Qwen2 and GPT-2: a scan over identical layers.

Parameters of the layers are stacked on a leading axis: compile time does not grow with depth, and
sharding, streaming and adapters each have one array per kind of weight.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta
from jaxtyping import Float, Int

from taskpgm.models.arrays import Array
from taskpgm.models.config import DecoderConfig
from taskpgm.models.layers import BY_ROWS, NORMS, Layer, rotation
from taskpgm.models.sharding import constrain

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Cache(NamedTuple):
    """Keys and values of what has been read, the segment of each place, and how much was read."""

    keys: Float[Array, "L b s n d"]
    values: Float[Array, "L b s n d"]
    segment_ids: Int[Array, "b s"]
    length: int | Int[Array, ""]  # a plain 0 lets a long prompt be read in blocks


def stack(config: DecoderConfig) -> type[nn.Module]:
    """`Layer`, repeated by a scan over parameters stacked on axis 0 under the name "layers"."""
    layer = Layer
    if config.remat != "none":
        if config.remat not in REMAT_POLICIES:
            known = ", ".join(REMAT_POLICIES)
            raise ValueError(f"remat {config.remat!r} is none of none, {known}")
        policy = REMAT_POLICIES[config.remat]
        layer = nn.remat(Layer, policy=policy, prevent_cse=False, static_argnums=(5,))
    return nn.scan(
        layer,
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast),  # pyright: ignore[reportArgumentType]
        length=config.num_layers,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


class Decoder(nn.Module):
    """tokens [b t] -> logits [b t v], float32.

    `.apply({"params": ...[, "lora": ...]}, tokens, positions, segment_ids, deterministic=, rngs=)`.
    Without `positions` they count from 0 in each row; without `segment_ids` a row is one segment.
    A config with `lora` and variables without it compute the base model.
    """

    config: DecoderConfig

    def setup(self):
        c = self.config
        dtype, init = jnp.dtype(c.param_dtype), nn.initializers.normal(c.initializer_range)
        shape = (c.vocab_size, c.hidden_size)
        named = partial(nn.with_logical_partitioning, init)
        self.embedding: Any = self.param("embedding", named(("vocab", "embed")), shape, dtype)
        if c.rope_theta is None:
            shape, names = (c.max_position, c.hidden_size), (None, "embed")
            self.position_embedding: Any = self.param(
                "position_embedding", named(names), shape, dtype
            )
        self.layers = stack(c)(c)
        self.final_norm = NORMS[c.norm](c)
        if not c.tie_embeddings:
            shape = (c.hidden_size, c.vocab_size)
            self.head: Any = self.param("head", named(("embed", "vocab")), shape, dtype)

    def __call__(self, tokens, positions=None, segment_ids=None, *, deterministic=True):
        x = self.hidden(tokens, positions, segment_ids, deterministic=deterministic)
        return self._logits(x)

    def hidden(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"] | None = None,
        segment_ids: Int[Array, "b t"] | None = None,
        *,
        deterministic: bool = True,
    ) -> Float[Array, "b t d"]:
        """What the unembedding multiplies: the last layer's output after the final norm."""
        return self._run(tokens, positions, segment_ids, None, deterministic)[0]

    def extend(
        self,
        tokens: Int[Array, "b t"],
        positions: Int[Array, "b t"],
        segment_ids: Int[Array, "b t"],
        cache: Cache,
    ) -> tuple[Float[Array, "b v"], Cache]:
        """Read t more tokens into the cache; the logits are those after the last of them."""
        t = tokens.shape[1]
        written = jax.lax.dynamic_update_slice(cache.segment_ids, segment_ids, (0, cache.length))
        cache = cache._replace(segment_ids=written)
        x, (k, v) = self._run(tokens, positions, segment_ids, cache, True)
        at = (0, 0, cache.length, 0, 0)
        keys = jax.lax.dynamic_update_slice(cache.keys, k.astype(cache.keys.dtype), at)
        values = jax.lax.dynamic_update_slice(cache.values, v.astype(cache.values.dtype), at)
        cache = Cache(keys, values, written, cache.length + t)
        return self._logits(x[:, -1:])[:, 0], cache

    def _run(self, tokens, positions, segment_ids, cache, deterministic):
        c = self.config
        if c.lora is None and "lora" in self.variables:
            raise ValueError("the variables hold adapters, but config.lora is None")
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        x = jnp.take(self.embedding, tokens, axis=0).astype(c.dtype)
        turn = None
        if c.rope_theta is None:
            if tokens.shape[1] > c.max_position:
                raise ValueError(
                    f"a row of {tokens.shape[1]} tokens exceeds the model's"
                    f" {c.max_position} positions"
                )
            x = x + jnp.take(self.position_embedding, positions, axis=0).astype(c.dtype)
        else:
            turn = rotation(c, positions)
        window = None
        if len(set(c.windows)) > 1:  # they differ between layers: scanned over, so traced
            window = jnp.array([w or jnp.iinfo(jnp.int32).max for w in c.windows], jnp.int32)
        past = None if cache is None else (cache.keys, cache.values)
        state = (None, None) if cache is None else (cache.segment_ids, cache.length)
        shared = (turn, segment_ids, *state)
        x = constrain(x, BY_ROWS)
        x, fresh = self.layers(x, window, past, shared, deterministic)
        return self.final_norm(x), fresh

    def _logits(self, x: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        matrix = self.embedding.T if self.config.tie_embeddings else self.head
        return jnp.matmul(x, matrix.astype(x.dtype), preferred_element_type=jnp.float32)


# ---------------------------------------------------------------- parameters


def variables(params, lora=None) -> dict:
    """What `Decoder.apply` takes: the weights, and an adapter where there is one."""
    return {"params": params} if lora is None else {"params": params, "lora": lora}


def trained_variables(config: DecoderConfig, trained, frozen=None) -> dict:
    """`variables` of a fine-tuned model: `trained` is an adapter beside the `frozen` base where
    the config has one, else all weights."""
    return variables(trained) if config.lora is None else variables(frozen, trained)


def unembedding(config: DecoderConfig, params) -> Float[Array, "d v"]:
    """The matrix from hidden states to logits: the embedding, transposed, if they are tied."""
    return params["embedding"].T if config.tie_embeddings else params["head"]


def _initialize(config: DecoderConfig, key: Array):
    # Of one token: not every backend takes so short a row, and no weight depends on it.
    config = dataclasses.replace(config, attention="reference")
    return Decoder(config).init(key, jnp.zeros((1, 1), jnp.int32))


@partial(jax.jit, static_argnums=0)
def init_params(config: DecoderConfig, key: Array):
    """Random weights: normal with config.initializer_range, norms 1, biases 0."""
    return meta.unbox(_initialize(dataclasses.replace(config, lora=None), key)["params"])


@partial(jax.jit, static_argnums=0)
def init_lora(config: DecoderConfig, key: Array):
    """Adapters in float32 that change nothing yet: A normal with variance 1 / fan-in, B zero."""
    if config.lora is None:
        raise ValueError("init_lora: config.lora is None; give DecoderConfig a LoraConfig")
    return meta.unbox(_initialize(config, key)["lora"])


@cache
def _boxes(config: DecoderConfig):
    # Kept, because an abstract initialisation takes a tenth of a second.
    return jax.eval_shape(partial(_initialize, config), jax.random.key(0))


def _abstract(config: DecoderConfig, collection: str, read: Callable[[Any], Any]):
    """A tree like the collection's of what `read` tells of each array in its box of axes' names."""
    is_box = lambda x: isinstance(x, nn.LogicallyPartitioned)  # noqa: E731
    return jax.tree.map(read, _boxes(config)[collection], is_leaf=is_box)


def logical_axes(config: DecoderConfig):
    """A tree like `params` of tuples of axis names.

    They are layers, vocab, embed, heads, kv_heads, mlp, and None for what is never divided.
    """
    return _abstract(dataclasses.replace(config, lora=None), "params", lambda x: x.names)


def lora_logical_axes(config: DecoderConfig):
    """A tree like `lora` of tuples of logical axis names; the rank is None."""
    return _abstract(config, "lora", lambda x: x.names)


def abstract_params(config: DecoderConfig):
    """A tree like `params` of shapes and types."""
    shape = lambda x: jax.ShapeDtypeStruct(x.value.shape, x.value.dtype)  # noqa: E731
    return _abstract(dataclasses.replace(config, lora=None), "params", shape)
