"""Cross entropy, chunked over tokens: the logits of a whole batch never exist at once.

For hidden states h [n d], the unembedding U [d v], targets y and weights w,

    sum_nll = sum_i w_i (logsumexp(h_i U) - (h_i U)[y_i]).

The gradient of a chunk's sum needs only that chunk's logits, so it is taken in the same pass that
computes them: dU and dh are what is carried to the backward pass, not the logits, and the product
h U is done once rather than twice. Softmax and sums are float32 whatever the inputs' dtype.
"""

from functools import partial

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
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of -log softmax(hidden @ unembedding)[target], in nats, and the sum of weights.

    At most `chunk` rows of logits live at a time. The product is taken in the dtype of `hidden`
    with float32 sums; the gradient of `unembedding` is summed in float32 and has its dtype.
    Differentiable in `hidden`, `unembedding` and `weights` (reverse mode); an input that is not
    being differentiated costs no gradient product. Chunk j holds the rows j, j + k, j + 2k, ... of
    k chunks, so that rows sharded by contiguous blocks stay on their devices, every device at work
    in every chunk.

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
    count = chunk_count(n, chunk)
    padding = -n % count
    if padding:
        hidden = jnp.pad(hidden, ((0, padding), (0, 0)))
        targets, weights = jnp.pad(targets, (0, padding)), jnp.pad(weights, (0, padding))
    weights = weights.astype(jnp.float32)
    nll = _sum_nll(count, hidden, unembedding, targets, weights)
    return nll, jnp.sum(weights)


def _logits(hidden: Float[Array, "c d"], unembedding: Float[Array, "d v"]) -> Float[Array, "c v"]:
    return jnp.dot(hidden, unembedding, preferred_element_type=jnp.float32)


def _chunk_nll(logits: Float[Array, "c v"], hit: Array) -> tuple[Array, Array, Array]:
    """-log softmax at the target [c], with exp(logits - max) [c v] and its sum [c 1]."""
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    exponential = jnp.exp(logits - top)
    total = jnp.sum(exponential, axis=-1, keepdims=True)
    # A masked sum, not a gather: it fuses with the reduction beside it, and a vocabulary that is
    # sharded needs one number per row from each shard rather than the row.
    target = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    return jnp.log(total[:, 0]) + top[:, 0] - target, exponential, total


def _hits(targets: Int[Array, "c"], vocabulary: int) -> Array:
    return targets[:, None] == jax.lax.broadcasted_iota(targets.dtype, (1, vocabulary), 1)


def _split(x: Array, count: int) -> Array:
    return x.reshape(x.shape[0] // count, count, *x.shape[1:])


def _take(x: Array, index: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sum_nll(count, hidden, unembedding, targets, weights):
    split = [_split(x, count) for x in (hidden, targets, weights)]
    unembedding = unembedding.astype(hidden.dtype)

    def body(total, index):
        h, y, w = (_take(x, index) for x in split)
        nll, _, _ = _chunk_nll(_logits(h, unembedding), _hits(y, unembedding.shape[1]))
        return total + jnp.sum(nll * w), None

    return jax.lax.scan(body, jnp.float32(0.0), jnp.arange(count))[0]


def _forward(count, hidden, unembedding, targets, weights):
    wants_hidden, wants_unembedding = hidden.perturbed, unembedding.perturbed
    hidden, unembedding, targets, weights = (
        x.value for x in (hidden, unembedding, targets, weights)
    )
    split = [_split(x, count) for x in (hidden, targets, weights)]
    dtype, unembedding = unembedding.dtype, unembedding.astype(hidden.dtype)

    def body(carry, index):
        total, d_unembedding = carry
        h, y, w = (_take(x, index) for x in split)
        hit = _hits(y, unembedding.shape[1])
        nll, exponential, normaliser = _chunk_nll(_logits(h, unembedding), hit)
        d_logits = (exponential / normaliser - hit) * w[:, None]
        d_logits = d_logits.astype(hidden.dtype)
        d_hidden = None
        if wants_hidden:
            d_hidden = jnp.dot(d_logits, unembedding.T, preferred_element_type=jnp.float32)
            d_hidden = d_hidden.astype(hidden.dtype)
        if wants_unembedding:
            d_unembedding += jnp.dot(h.T, d_logits, preferred_element_type=jnp.float32)
        return (total + jnp.sum(nll * w), d_unembedding), (d_hidden, nll)

    start = jnp.zeros(unembedding.shape, jnp.float32) if wants_unembedding else None
    (total, d_unembedding), (d_hidden, nll) = jax.lax.scan(
        body, (jnp.float32(0.0), start), jnp.arange(count)
    )
    if wants_hidden:
        d_hidden = jnp.moveaxis(d_hidden, 0, 1).reshape(hidden.shape)
    if wants_unembedding:
        d_unembedding = d_unembedding.astype(dtype)
    return total, (d_hidden, d_unembedding, jnp.moveaxis(nll, 0, 1).reshape(-1))


def _backward(count, saved, cotangent):
    d_hidden, d_unembedding, nll = saved

    def scaled(x):
        return None if x is None else (x * cotangent).astype(x.dtype)

    return scaled(d_hidden), scaled(d_unembedding), None, scaled(nll)


_sum_nll.defvjp(_forward, _backward, symbolic_zeros=True)
