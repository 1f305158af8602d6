"""What one row of data would do to a model: its gradient, or Adam's step on it, in few numbers."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from taskpgm.models import DecoderConfig, trained_variables
from taskpgm.training.step import sum_nll

ROWS = "rows"  # name of the vmapped axis
CHUNK, LEAST = 1024, 16  # positions whose logits are alive at a time, of all rows and of one


class Sketch(NamedTuple):
    """A random projection of vectors [p] to [d] that keeps inner products on the average: each of
    the d results sums, with random signs, q entries that belong to no other (a count sketch, the
    feature hashing of Weinberger et al., 2009, with buckets of one size).

    The variance of an inner product is at most 2 |x|^2 |y|^2 / d, as that of d rows of random
    signs, for p operations in place of p d.
    """

    order: Int[np.ndarray, "q d"]  # of the entries; from p on there are none
    sign: Float[np.ndarray, "q d"]


def make_sketch(size: int, dim: int, seed: int) -> Sketch:
    """To `dim` numbers; all `size` of them, as they are, where those are not more."""
    if size <= dim:
        return Sketch(np.arange(size, dtype=np.int32)[None], np.ones((1, size), np.float32))
    rng, rounds = np.random.default_rng(seed), -(-size // dim)
    order = rng.permutation(rounds * dim).astype(np.int32).reshape(rounds, dim)
    sign = 2.0 * rng.integers(0, 2, (rounds, dim)) - 1.0
    return Sketch(order, sign.astype(np.float32))


class Moments(NamedTuple):
    """Of Adam, after some updates, and its settings."""

    mu: Any
    nu: Any
    count: Int[Array, ""]
    b1: float
    b2: float
    eps: float


def adam_moments(opt_state: Any, b1: float, b2: float, eps: float) -> Moments:
    """Those of `make_optimizer`'s state."""
    mu, nu, count = (optax.tree_utils.tree_get(opt_state, x) for x in ("mu", "nu", "count"))
    return Moments(mu, nu, jnp.asarray(count), b1, b2, eps)


@partial(jax.jit, static_argnums=0)
def gradient_features(
    config: DecoderConfig,
    trainable: Any,
    frozen: Any,
    batch: Mapping[str, Array],
    sketch: Sketch,
    moments: Moments | None = None,
) -> Float[Array, "b d"]:
    """For each row of a batch, the sketch of the gradient of its mean loss per scored token; with
    `moments`, of the direction in which Adam would go next, m / sqrt(v + eps), bias corrected.

    `trainable` and `frozen` are those of a training step, the batch's arrays [b t]. Without
    dropout. A row without a scored token has the gradient 0. Float32.
    """
    config = config.side_by_side  # rows are
    if config.lora:
        config = replace(config, lora=replace(config.lora, dropout=0.0))

    def loss(trainable: Any, row: Mapping[str, Array]) -> Float[Array, ""]:
        variables = trained_variables(config, trainable, frozen)
        one = {name: x[None] for name, x in row.items()}
        nll = sum_nll(config, variables, one, jax.random.key(0), chunk, ROWS)
        return nll / jnp.maximum(jnp.sum(row["weights"], dtype=jnp.float32), 1.0)

    chunk = max(LEAST, CHUNK // batch["tokens"].shape[0])
    used = {name: x for name, x in batch.items() if name != "example"}
    each = jax.vmap(jax.grad(loss), in_axes=(None, 0), axis_name=ROWS)(trainable, used)
    if moments is not None:
        each = jax.tree.map(partial(_direction, moments), each, moments.mu, moments.nu)
    flat = jnp.concatenate([x.reshape(x.shape[0], -1) for x in jax.tree.leaves(each)], 1)
    room = sketch.order.size - flat.shape[1]
    flat = jnp.pad(flat.astype(jnp.float32), ((0, 0), (0, room)))
    return jnp.sum(flat[:, sketch.order] * sketch.sign, 1)


def _direction(moments: Moments, g: Array, mu: Array, nu: Array) -> Array:
    """Of one array; the step counts for all rows alike."""
    _, _, count, b1, b2, eps = moments
    m = (b1 * mu + (1 - b1) * g) / (1 - b1 ** (count + 1))
    v = (b2 * nu + (1 - b2) * g * g) / (1 - b2 ** (count + 1))
    return m / jnp.sqrt(v + eps)
