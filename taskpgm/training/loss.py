"""Cross entropy, chunked over tokens: the logits of a whole batch never exist at once.

For hidden states h [n d], the unembedding U [d v], targets y and weights w,

    sum_nll = sum_i w_i (logsumexp(h_i U) - (h_i U)[y_i]).

The gradient of a chunk's sum needs only that chunk's logits, so it is taken in the same pass that
computes them: dU and dh are what is carried to the backward pass, not the logits, and the product
h U is done once rather than twice. Softmax and sums are float32 whatever the inputs' dtype.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def chunk_count(n: int, chunk: int) -> int:
    """The number of chunks for `n` tokens: the smallest that keeps each within `chunk` tokens and
    divides n, or, where no divisor is near (n prime), the smallest that does not."""
    least = -(-n // chunk)
    for count in range(least, min(2 * least, n) + 1):
        if n % count == 0:
            return count
    return least


def cross_entropy(
    hidden: Float[Array, "n d"],
    unembedding: Float[Array, "d v"],
    targets: Int[Array, "n"],
    weights: Float[Array, "n"],
    *,
    chunk: int = 1024,
    shards: int = 1,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of -log softmax(hidden @ unembedding)[target], in nats, and the sum of weights.

    At most `chunk` rows of logits live at a time. The product is taken in the dtype of `hidden`
    with float32 sums; the gradient of `unembedding` is summed in float32 and has its dtype.
    Differentiable in `hidden`, `unembedding` and `weights` (reverse mode); an input that is not
    being differentiated costs no gradient product.

    `shards`: into how many contiguous blocks the rows are split over devices. Every chunk takes its
    part of each block, so that all devices work on it with rows of their own, and the gradient of
    `unembedding` is summed block by block, to be added up over the devices once and not per chunk.

    Raises:
      ValueError: when the shapes do not fit together or `chunk` < 1.
    """
    n, d = hidden.shape
    if unembedding.shape[0] != d or targets.shape != (n,) or weights.shape != (n,):
        raise ValueError(
            f"cross_entropy: hidden {hidden.shape}, unembedding {unembedding.shape}, targets "
            f"{targets.shape}, weights {weights.shape} do not fit [n d], [d v], [n], [n]"
        )
    if chunk < 1:
        raise ValueError(f"cross_entropy: chunk is {chunk}; it must be at least 1")
    if n % shards:
        raise ValueError(f"cross_entropy: {n} rows are not split evenly by {shards} shards")
    count = chunk_count(n // shards, max(1, chunk // shards))
    padding = -(n // shards) % count

    def blocks(x):
        x = x.reshape(shards, n // shards, *x.shape[1:])
        x = jnp.pad(x, ((0, 0), (0, padding)) + ((0, 0),) * (x.ndim - 2)) if padding else x
        return x.reshape(shards, count, -1, *x.shape[2:])

    weights = weights.astype(jnp.float32)
    nll = _sum_nll(blocks(hidden), unembedding, blocks(targets), blocks(weights))
    return nll, jnp.sum(weights)


def _logits(hidden: Float[Array, "s c d"], unembedding: Float[Array, "d v"]) -> Array:
    return jnp.einsum("scd,dv->scv", hidden, unembedding, preferred_element_type=jnp.float32)


def _chunk_nll(logits: Float[Array, "s c v"], hit: Array) -> tuple[Array, Array, Array]:
    """-log softmax at the target [s c], with exp(logits - max) and its sum [s c 1]."""
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    exponential = jnp.exp(logits - top)
    total = jnp.sum(exponential, axis=-1, keepdims=True)
    # A masked sum, not a gather: it fuses with the reduction beside it, and a vocabulary that is
    # sharded needs one number per row from each shard rather than the row.
    target = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    return (jnp.log(total) + top)[..., 0] - target, exponential, total


def _hits(targets: Int[Array, "s c"], vocabulary: int) -> Array:
    return targets[..., None] == jax.lax.broadcasted_iota(targets.dtype, (1, 1, vocabulary), 2)


def _take(x: Array, index: Array) -> Array:
    """Chunk `index` of x [s k c ...]."""
    return jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)


@jax.custom_vjp
def _sum_nll(hidden, unembedding, targets, weights):
    """The weighted sum, of rows laid out [s k c ...]: in s blocks, k chunks of c rows."""
    matrix = unembedding.astype(hidden.dtype)

    def body(total, index):
        h, y, w = (_take(x, index) for x in (hidden, targets, weights))
        nll, _, _ = _chunk_nll(_logits(h, matrix), _hits(y, matrix.shape[1]))
        return total + jnp.sum(nll * w), None

    return jax.lax.scan(body, jnp.float32(0.0), jnp.arange(hidden.shape[1]))[0]


def _forward(hidden, unembedding, targets, weights):
    wants_hidden, wants_unembedding = hidden.perturbed, unembedding.perturbed
    hidden, unembedding, targets, weights = (
        x.value for x in (hidden, unembedding, targets, weights)
    )
    matrix = unembedding.astype(hidden.dtype)

    def body(carry, index):
        total, d_matrix = carry
        h, y, w = (_take(x, index) for x in (hidden, targets, weights))
        hit = _hits(y, matrix.shape[1])
        nll, exponential, normaliser = _chunk_nll(_logits(h, matrix), hit)
        d_logits = ((exponential / normaliser - hit) * w[..., None]).astype(hidden.dtype)
        d_hidden = None
        if wants_hidden:
            d_hidden = jnp.einsum(
                "scv,dv->scd", d_logits, matrix, preferred_element_type=jnp.float32
            ).astype(hidden.dtype)
        if wants_unembedding:
            d_matrix += jnp.einsum(
                "scd,scv->sdv", h, d_logits, preferred_element_type=jnp.float32
            )
        return (total + jnp.sum(nll * w), d_matrix), (d_hidden, nll)

    shards, count, _, _ = hidden.shape
    start = jnp.zeros((shards, *matrix.shape), jnp.float32) if wants_unembedding else None
    (total, d_matrix), (d_hidden, nll) = jax.lax.scan(
        body, (jnp.float32(0.0), start), jnp.arange(count)
    )
    if wants_hidden:
        d_hidden = jnp.moveaxis(d_hidden, 0, 1)
    if wants_unembedding:
        d_matrix = jnp.sum(d_matrix, axis=0).astype(unembedding.dtype)
    return total, (d_hidden, d_matrix, jnp.moveaxis(nll, 0, 1))


def _backward(saved, cotangent):
    d_hidden, d_matrix, nll = saved

    def scaled(x):
        return None if x is None else (x * cotangent).astype(x.dtype)

    return scaled(d_hidden), scaled(d_matrix), None, scaled(nll)


_sum_nll.defvjp(_forward, _backward, symbolic_zeros=True)
