"""The layers of a decoder: norms, rotary positions, attention with or without a cache, the MLP."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from taskpgm.models.arrays import Array
from taskpgm.models.attention import attention
from taskpgm.models.config import DecoderConfig
from taskpgm.models.lora import Dense
from taskpgm.models.sharding import ANY, constrain

# Hidden states [b t d] stay split by rows. Left to itself, the compiler would follow a weight that
# is sharded over its input axis: split activations by features and gather the whole batch on every
# device, where it should gather the weight.
BY_ROWS = ("batch", ANY, ANY)
ACTIVATIONS = {"silu": nn.silu, "gelu_new": partial(nn.gelu, approximate=True)}


def rope_frequencies(config: DecoderConfig) -> np.ndarray:
    """Radians per position [head_dim / 2], float32: theta^(-2i/d), rescaled by config.rope_scaling.

    RoPE: Su et al. 2021, arXiv 2104.09864. linear: divided by the factor (arXiv 2306.15595).
    llama3: only long wavelengths are divided, with a linear blend between the two cut-offs.
    """
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequency = (1.0 / np.float32(config.rope_theta) ** exponent).astype(np.float32)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    if scaling.kind == "linear":
        return frequency / np.float32(scaling.factor)
    turns = scaling.original_max_position * frequency / np.float32(2 * np.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (keep * frequency + (1 - keep) * frequency / scaling.factor).astype(np.float32)


class Rotation(NamedTuple):
    """Cosines and sines of the angles by which queries and keys are turned, for all layers."""

    cos: Float[Array, "b t e"]
    sin: Float[Array, "b t e"]


def rotation(config: DecoderConfig, positions: Int[Array, "b t"]) -> Rotation:
    angle = positions.astype(jnp.float32)[..., None] * rope_frequencies(config)
    return Rotation(jnp.cos(angle), jnp.sin(angle))


def rotate(x: Float[Array, "b t h d"], by: Rotation) -> Float[Array, "b t h d"]:
    """Rotate the pairs (x_i, x_{i + d/2}) by their angles, in float32."""
    cos, sin = by.cos[:, :, None], by.sin[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


# ---------------------------------------------------------------- layers


@partial(jax.checkpoint, static_argnums=0)
def _rms_norm(eps, x, scale):
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * scale).astype(x.dtype)


@partial(jax.checkpoint, static_argnums=0)
def _layer_norm(eps, x, scale, bias):
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + eps)
    return (y * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps) * scale, in float32."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        dtype = jnp.dtype(self.config.param_dtype)
        ones = nn.with_logical_partitioning(nn.initializers.ones, (None,))
        scale = self.param("scale", ones, x.shape[-1:], dtype)
        return _rms_norm(self.config.norm_eps, x, scale)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(variance + eps) * scale + bias, in float32."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        dtype = jnp.dtype(self.config.param_dtype)
        ones = nn.with_logical_partitioning(nn.initializers.ones, (None,))
        zeros = nn.with_logical_partitioning(nn.initializers.zeros, (None,))
        scale = self.param("scale", ones, x.shape[-1:], dtype)
        bias = self.param("bias", zeros, x.shape[-1:], dtype)
        return _layer_norm(self.config.norm_eps, x, scale, bias)


NORMS = {"rms": RMSNorm, "layer": LayerNorm}


class Attention(nn.Module):
    config: DecoderConfig

    @nn.compact
    def __call__(self, x, turn, segment_ids, window, cache, deterministic):
        c = self.config
        b, t, _ = x.shape
        heads, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        q = Dense(c, heads, ("embed", "heads"), c.qkv_bias, name="q_proj")(x, deterministic)
        k = Dense(c, kv, ("embed", "kv_heads"), c.qkv_bias, name="k_proj")(x, deterministic)
        v = Dense(c, kv, ("embed", "kv_heads"), c.qkv_bias, name="v_proj")(x, deterministic)
        q = q.reshape(b, t, c.num_heads, c.head_dim)
        k = k.reshape(b, t, c.num_kv_heads, c.head_dim)
        v = v.reshape(b, t, c.num_kv_heads, c.head_dim)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        fresh = (k, v)
        see = partial(attention, q, window=window, segment_ids=segment_ids)
        if cache is None:
            y = see(k, v, backend=c.attention)
        else:
            old_k, old_v, key_segment_ids, start = cache
            k = jax.lax.dynamic_update_slice(old_k, k.astype(old_k.dtype), (0, start, 0, 0))
            v = jax.lax.dynamic_update_slice(old_v, v.astype(old_v.dtype), (0, start, 0, 0))
            # No fused kernel has an offset, and one query at a time is bound by memory anyway.
            y = see(k, v, key_segment_ids=key_segment_ids, offset=start, backend="reference")
        y = y.reshape(b, t, heads)
        o_proj = Dense(c, c.hidden_size, ("heads", "embed"), c.o_bias, name="o_proj")
        return o_proj(y, deterministic), fresh


class MLP(nn.Module):
    """down(act(gate x) * up x), or down(act(up x)) where the family has no gate."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, deterministic):
        c = self.config
        act = ACTIVATIONS[c.activation]

        def inner(name):
            dense = Dense(c, c.intermediate_size, ("embed", "mlp"), c.mlp_bias, name=name)
            return dense(x, deterministic)

        # Computed again in the backward pass: an activation is cheap, what it keeps is not (GPT-2's
        # would be six arrays of the largest kind there is).
        if c.gated_mlp:
            gated = jax.checkpoint(lambda gate, up: act(gate) * up)
            y = gated(inner("gate_proj"), inner("up_proj"))
        else:
            y = jax.checkpoint(act)(inner("up_proj"))
        down = Dense(c, c.hidden_size, ("mlp", "embed"), c.mlp_bias, name="down_proj")
        return down(y, deterministic)


class Layer(nn.Module):
    """x + attention(norm x), then x + mlp(norm x); given a cache, also the new keys and values."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, window, cache, shared, deterministic):
        c = self.config
        turn, segment_ids, key_segment_ids, start = shared
        window = c.windows[0] if window is None else window
        past = None if cache is None else (*cache, key_segment_ids, start)
        y = NORMS[c.norm](c, name="attention_norm")(x)
        y, fresh = Attention(c, name="attention")(y, turn, segment_ids, window, past, deterministic)
        x = constrain(x + y, BY_ROWS)
        y = NORMS[c.norm](c, name="mlp_norm")(x)
        x = constrain(x + MLP(c, name="mlp")(y, deterministic), BY_ROWS)
        return x, None if cache is None else fresh
