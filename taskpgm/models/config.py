"""What a decoder is: `DecoderConfig`, and the adapters that it may carry."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from taskpgm.models import hf_config, hf_folder

DENSE_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): y = x W + (alpha / rank) (x A) B.

    `targets` are names of our own dense layers, the same for every family: q_proj, k_proj, v_proj,
    o_proj, gate_proj, up_proj, down_proj (GPT-2 has no gate_proj).
    """

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self):
        unknown = sorted(set(self.targets) - set(DENSE_NAMES))
        if unknown:
            raise ValueError(f"lora.targets: {unknown[0]!r} is none of {', '.join(DENSE_NAMES)}")
        ordered = tuple(name for name in DENSE_NAMES if name in self.targets)
        object.__setattr__(self, "targets", ordered)
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora: rank {self.rank} must be >= 1, dropout {self.dropout} in [0,1)"
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class RopeScaling:
    """Rescaled rotary frequencies: kind "linear" (position interpolation) or "llama3"."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True)
class DecoderConfig:
    """Architecture and numerics of one decoder. Hashable: it can be a static argument."""

    architecture: str  # llama, mistral, qwen2, gpt2
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    rope_theta: float | None = 10000.0  # None: learned absolute positions
    rope_scaling: RopeScaling | None = None
    norm: str = "rms"  # or "layer"
    norm_eps: float = 1e-6
    activation: str = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False
    sliding_window: int | None = None  # keys a query sees, itself included
    full_layers: int = 0  # the first layers that see everything despite sliding_window
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None
    dtype: str = "float32"  # of the computation; softmax, norms and logits are float32 regardless
    param_dtype: str = "float32"
    remat: str = "none"  # what the backward pass recomputes: none, full, dots
    attention: str = "auto"  # a backend of attention.BACKENDS, or auto
    lora: LoraConfig | None = None

    def __post_init__(self):
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}"
            )
        if self.head_dim < 1:
            raise ValueError(f"num_heads {self.num_heads} is above hidden_size {self.hidden_size}")
        if self.rope_theta is not None and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {self.head_dim}")
        if self.lora and "gate_proj" in self.lora.targets and not self.gated_mlp:
            raise ValueError(f"lora.targets: {self.architecture} has no 'gate_proj'")

    @classmethod
    def from_hf(cls, path_or_dict: str | Path | Mapping[str, Any]) -> "DecoderConfig":
        """Read a model folder, a config.json, or its content.

        Raises FileNotFoundError, or ValueError naming the key, for what we do not compute exactly.
        """
        if isinstance(path_or_dict, Mapping):
            raw, where = path_or_dict, "config"
        else:
            raw, where = hf_folder.read_config(Path(path_or_dict))
        fields = hf_config.read(raw, where)
        scaling = fields.pop("rope_scaling", None)
        try:
            return cls(**fields, rope_scaling=None if scaling is None else RopeScaling(**scaling))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None

    def to_hf(self) -> dict[str, Any]:
        """The content of the config.json that `transformers` opens as the same model."""
        return hf_config.write(self)

    @property
    def side_by_side(self) -> "DecoderConfig":
        """For what `jax.vmap` runs side by side: attention "auto" is the reference.

        cuDNN's attention under a mask, as packed rows have it, has no batching rule that works (jax
        0.11.2 on an H100: "cannot reshape array").
        """
        return replace(self, attention="reference") if self.attention == "auto" else self

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Sliding window of each layer, None where a layer sees everything before it."""
        full = self.num_layers if self.sliding_window is None else self.full_layers
        return tuple(None if i < full else self.sliding_window for i in range(self.num_layers))

    @property
    def num_params(self) -> int:
        """Number of weights, tied embeddings counted once, adapters not counted."""
        d, f = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        norm = d * (2 if self.norm == "layer" else 1)
        layer = d * (q + 2 * kv) + q * d + (3 if self.gated_mlp else 2) * d * f + 2 * norm
        layer += self.qkv_bias * (q + 2 * kv) + self.o_bias * d
        layer += self.mlp_bias * ((2 if self.gated_mlp else 1) * f + d)
        embeddings = self.vocab_size * d * (1 if self.tie_embeddings else 2)
        learned = self.max_position * d if self.rope_theta is None else 0
        return self.num_layers * layer + embeddings + learned + norm
