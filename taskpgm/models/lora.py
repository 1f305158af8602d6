"""Low-rank adapters as a `lora` variable collection beside `params` (arXiv 2106.09685).

The frozen kernel stays in `params`; a `Dense` that the config names as a target reads a second
collection {"a": [in, rank], "b": [rank, out]} (with the scan's leading layer axis). Under
`jax.vmap` over the collection the kernel has no task axis, so the base is in memory once.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from taskpgm.models.arrays import Array
from taskpgm.models.config import DecoderConfig


@jax.custom_vjp
def low_rank(
    x: Float[Array, "b t i"], a: Float[Array, "i r"], b: Float[Array, "r o"]
) -> Float[Array, "b t o"]:
    """(x a) b in the type of x; gradients of a and b come in their own type, usually wider.

    The products of the backward pass are written out, because those that JAX derives make XLA turn
    whole activations around first: a tenth to a fifth of a training step on a CPU.
    """
    return _low_rank_forward(x, a, b)[0]


def _low_rank_forward(x, a, b):
    low = x @ a.astype(x.dtype)
    return low @ b.astype(x.dtype), (x, low, a, b)


def _low_rank_backward(kept, dy):
    x, low, a, b = kept
    dlow = jnp.einsum("bto,ro->btr", dy, b.astype(dy.dtype))
    dx = jnp.einsum("btr,ir->bti", dlow, a.astype(dy.dtype))
    da = jnp.einsum("bti,btr->ir", x, dlow, preferred_element_type=a.dtype)
    db = jnp.einsum("btr,bto->ro", low, dy, preferred_element_type=b.dtype)
    return dx, da, db


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


class Dense(nn.Module):
    """y = x W (+ c) (+ scale (x A) B where this layer is a target and its adapter is given)."""

    config: DecoderConfig
    features: int
    axes: tuple[str | None, str | None]  # logical names of (in, out)
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t i"], deterministic: bool = True
    ) -> Float[Array, "b t o"]:
        config, size = self.config, x.shape[-1]
        dtype, param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
        init = nn.initializers.normal(config.initializer_range)
        kernel: Any = self.param(
            "kernel",
            nn.with_logical_partitioning(init, self.axes),
            (size, self.features),
            param_dtype,
        )
        bias = None
        if self.use_bias:
            init = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
            offset: Any = self.param("bias", init, (self.features,), param_dtype)
            bias = offset.astype(dtype)
        lora = config.lora
        given = self.has_variable("lora", "a") or self.is_initializing()
        if lora is not None and self.name in lora.targets and given:
            a, b = self._adapter(size, lora.rank)
            if deterministic and self._merging_is_cheaper(x):
                y = x @ merge_kernel(kernel, a, b, lora.scale)
            else:
                y = x @ kernel.astype(dtype)
                x = nn.Dropout(lora.dropout)(x, deterministic=deterministic)
                y = y + low_rank(x, lora.scale * a, b)  # scaled where it is smallest
        else:
            y = x @ kernel.astype(dtype)
        return y if bias is None else y + bias

    def _merging_is_cheaper(self, x: Float[Array, "b t i"]) -> bool:
        """Whether A B costs less than (x A) B: for the tokens of a scoring batch, not for one that
        is being generated. Only where nothing is lost by it: in 16 bits a small A B would be.

        Layer by layer inside the scan, so no second copy of the base comes about.
        """
        tokens, size = x.shape[0] * x.shape[1], x.shape[2]
        exact = jnp.dtype(self.config.dtype) == jnp.dtype(self.config.param_dtype) == jnp.float32
        return exact and tokens * (size + self.features) > size * self.features

    def _adapter(self, size: int, rank: int) -> tuple[Float[Array, "i r"], Float[Array, "r o"]]:
        """Float32; at first a is normal with variance 1 / fan-in, b zero."""
        normal, zeros = nn.initializers.normal(size**-0.5), nn.initializers.zeros
        init_a = nn.with_logical_partitioning(normal, (self.axes[0], None))
        init_b = nn.with_logical_partitioning(zeros, (None, self.axes[1]))

        def make_a() -> Any:
            return init_a(self.make_rng("params"), (size, rank), jnp.float32)

        def make_b() -> Any:
            return init_b(None, (rank, self.features), jnp.float32)

        a, b = self.variable("lora", "a", make_a), self.variable("lora", "b", make_b)
        return a.value, b.value


def merge_lora(config: DecoderConfig, params, lora):
    """`params` with W + scale A B in place of every adapted kernel W; the product is float32."""
    if config.lora is None:
        raise ValueError("merge_lora: config.lora is None, so there is no adapter to merge")
    scale = config.lora.scale

    def walk(base, adapter):
        if "a" in adapter:
            kernel = merge_kernel(base["kernel"], adapter["a"], adapter["b"], scale)
            return {**base, "kernel": kernel}
        return {**base, **{key: walk(base[key], adapter[key]) for key in adapter}}

    return walk(params, lora)


@jax.jit
def merge_kernel(
    kernel: Float[Array, "*l i o"],
    a: Float[Array, "*l i r"],
    b: Float[Array, "*l r o"],
    scale: float | Float[Array, ""],
) -> Float[Array, "*l i o"]:
    """W + scale A B, in float32, back in the type of W."""
    change = jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32), precision="highest")
    return (kernel.astype(jnp.float32) + scale * change).astype(kernel.dtype)
