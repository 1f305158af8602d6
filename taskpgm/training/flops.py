"""Operations and bytes of a training step, by formula.

Per token, forward, one layer: 2 operations for each weight of a matrix, and for attention
4 * heads * head_dim * c, where c is the mean number of positions attended (QK' and PV; causal:
(length + 1) / 2, less with a sliding window). The unembedding counts as a matrix for the positions
that are scored, since the loss multiplies no others; the embedding lookup, norms, softmax and
rotary phases count nothing. The backward pass costs as much again for the gradients of the
activations and as much again for those of the weights; a frozen matrix has no gradient of the
second kind. Recomputation (remat) is never counted: MFU is of useful operations.
"""

import jax

from taskpgm.models import DecoderConfig

# Dense bf16 operations a second of one device, by a part of its device_kind (vendors' data sheets).
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "TPU v6": 918e12,
    "TPU v5p": 459e12,
    "TPU v5": 197e12,
    "TPU v4": 275e12,
}


def matrices(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each matrix of one layer."""
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = {"q_proj": (d, q), "k_proj": (d, kv), "v_proj": (d, kv), "o_proj": (q, d)}
    if config.gated_mlp:
        shapes["gate_proj"] = (d, f)
    return shapes | {"up_proj": (d, f), "down_proj": (f, d)}


def mean_context(length: int, window: int | None = None) -> float:
    """The mean number of positions that a causal query attends to in a row of `length`."""
    if not window or window >= length:
        return (length + 1) / 2
    return (window * (window + 1) / 2 + (length - window) * window) / length


def flops_per_token(config: DecoderConfig, length: int, scored: float = 1.0) -> float:
    """Floating-point operations of a training step for one token of a packed row of `length`.

    With config.lora, adapters are trained beside frozen weights, else all weights.
    scored: the share of the positions that have a weight in the loss.
    """
    base, attention = _forward(config, length, scored)
    if config.lora is None:
        return 3 * base + 3 * attention
    return 2 * base + 3 * attention + 3 * 2.0 * num_adapter_params(config)


def forward_flops_per_token(config: DecoderConfig, length: int, scored: float = 1.0) -> float:
    """Floating-point operations of a forward pass for one token, the share `scored` of all
    positions unembedded; adapters are not counted."""
    return sum(_forward(config, length, scored))


def _forward(config: DecoderConfig, length: int, scored: float) -> tuple[float, float]:
    """Operations per token, forward: of the weights' matrices, and of attention."""
    weights = config.num_layers * sum(2.0 * i * o for i, o in matrices(config).values())
    weights += 2.0 * config.hidden_size * config.vocab_size * scored
    context = mean_context(length, config.sliding_window)
    return weights, config.num_layers * 4.0 * config.num_heads * config.head_dim * context


def num_adapter_params(config: DecoderConfig) -> int:
    """Weights of one LoRA adapter: rank * (inputs + outputs) for each targeted matrix."""
    if config.lora is None:
        return 0
    shapes = matrices(config)
    sums = [sum(shapes[name]) for name in config.lora.targets if name in shapes]
    return config.num_layers * config.lora.rank * sum(sums)


def peak_flops() -> float | None:
    """Dense bf16 operations a second of all devices together; None where it is not known (CPU)."""
    kind = jax.devices()[0].device_kind
    for name, peak in PEAK_FLOPS.items():
        if name in kind:
            return peak * jax.device_count()
    return None
