"""What a decoder is: `DecoderConfig`, read from and written to a Hugging Face config.json.

What this package cannot compute exactly is refused here, by name, before a weight is read.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021, arXiv 2106.09685): y = x W + (alpha / rank) (x A) B.

    `targets` are names of our own dense layers, the same for every family: q_proj, k_proj, v_proj,
    o_proj, gate_proj, up_proj, down_proj (GPT-2 has no gate_proj).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")

    def __post_init__(self):
        object.__setattr__(self, "targets", tuple(self.targets))
        unknown = sorted(set(self.targets) - set(DENSE_NAMES))
        if unknown:
            raise ValueError(f"lora.targets: {unknown[0]!r} is none of {', '.join(DENSE_NAMES)}")
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"lora: rank {self.rank} must be >= 1, dropout {self.dropout} in [0,1)"
            )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


DENSE_NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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

    architecture: str  # a key of FAMILIES: llama, mistral, qwen2, gpt2
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
        if self.rope_theta is not None and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, not {self.head_dim}")

    @classmethod
    def from_hf(cls, path_or_dict: str | Path | Mapping[str, Any]) -> "DecoderConfig":
        """Read a model folder, a config.json, or its content. ValueError for what we cannot compute."""
        if isinstance(path_or_dict, Mapping):
            return _from_dict(path_or_dict, "config")
        path = Path(path_or_dict)
        if path.is_dir():
            path = path / "config.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; a model folder holds a config.json")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not a JSON file ({error})") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: not a JSON object")
        return _from_dict(content, str(path))

    def to_hf(self) -> dict[str, Any]:
        """The config.json that `transformers` opens as the same model."""
        return FAMILIES[self.architecture].write(self)

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


# ---------------------------------------------------------------- reading config.json

ACTIVATION_NAMES = ("silu", "gelu_new")
ROPE_KINDS = ("default", "linear", "llama3")


def _from_dict(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    kind = raw.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(
            f"{where}: architecture {kind!r} is not supported; model_type must be one of"
            f" {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    for name in raw.get("architectures") or ():
        if name not in family.classes:
            raise ValueError(
                f"{where}: architecture {name!r} is not supported; only {family.classes[0]} is"
            )
    if raw.get("quantization_config"):
        method = raw["quantization_config"].get("quant_method", "unknown method")
        raise ValueError(
            f"{where}: quantised weights ({method}) are not supported; save the model unquantised"
        )
    try:
        config = family.read(raw, where)
    except KeyError as error:
        raise ValueError(f"{where}: key {error.args[0]!r} is missing") from None
    if config.activation not in ACTIVATION_NAMES:
        raise ValueError(
            f"{where}: activation {config.activation!r} is not supported; only"
            f" {', '.join(ACTIVATION_NAMES)} are"
        )
    return config


def _token_ids(raw: Mapping[str, Any]) -> dict[str, Any]:
    def plain(value):
        return tuple(value) if isinstance(value, list | tuple) else value

    return {key: plain(raw.get(key)) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _rope(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Both spellings: `rope_parameters` (transformers 5) and `rope_theta` + `rope_scaling` (4)."""
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ValueError(f"{where}: rope scaling that differs between layers is not supported")
    if kind not in ROPE_KINDS:
        raise ValueError(
            f"{where}: rope scaling {kind!r} is not supported; only {', '.join(ROPE_KINDS)} are"
        )
    partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ValueError(f"{where}: partial_rotary_factor {partial} is not supported; only 1.0 is")
    theta = rope.get("rope_theta") or raw.get("rope_theta") or 10000.0
    scaling = None
    if kind != "default":
        original = raw.get("original_max_position_embeddings")
        original = original or rope.get("original_max_position_embeddings")
        scaling = RopeScaling(kind, float(rope["factor"]))
        if kind == "llama3":
            scaling = dataclasses.replace(
                scaling,
                low_freq_factor=float(rope["low_freq_factor"]),
                high_freq_factor=float(rope["high_freq_factor"]),
                original_max_position=int(original or raw["max_position_embeddings"]),
            )
    return {"rope_theta": float(theta), "rope_scaling": scaling}


def _read_rotary(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    """llama, mistral and qwen2: one computation, other biases and windows."""
    kind, heads, layers = raw["model_type"], raw["num_attention_heads"], raw["num_hidden_layers"]
    bias = {
        "llama": {
            "qkv_bias": bool(raw.get("attention_bias", False)),
            "o_bias": bool(raw.get("attention_bias", False)),
            "mlp_bias": bool(raw.get("mlp_bias", False)),
        },
        "mistral": {},
        "qwen2": {"qkv_bias": True},
    }[kind]
    kv_default = {"llama": None, "mistral": 8, "qwen2": 32}[kind]
    max_default = {"llama": 2048, "mistral": 131072, "qwen2": 32768}[kind]
    window, full = _window(raw, where, layers)
    return DecoderConfig(
        architecture=kind,
        vocab_size=raw["vocab_size"],
        hidden_size=raw["hidden_size"],
        intermediate_size=raw["intermediate_size"],
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads", kv_default) or heads,
        head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
        max_position=raw.get("max_position_embeddings", max_default),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        activation=raw.get("hidden_act", "silu"),
        tie_embeddings=bool(raw.get("tie_word_embeddings", False)),
        sliding_window=window,
        full_layers=full,
        initializer_range=raw.get("initializer_range", 0.02),
        **bias,
        **_rope(raw, where),
        **_token_ids(raw),
    )


def _window(raw: Mapping[str, Any], where: str, layers: int) -> tuple[int | None, int]:
    """(sliding window, number of leading layers that do not use it)."""
    kind = raw["model_type"]
    if kind == "llama":
        return None, 0
    if kind == "mistral":
        return raw.get("sliding_window", 4096), 0
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window", False) else None
    types = raw.get("layer_types")
    if types is None:
        full = min(raw.get("max_window_layers", 28), layers)
        return (None, 0) if window is None or full == layers else (window, full)
    full = types.index("sliding_attention") if "sliding_attention" in types else layers
    if set(types[:full]) - {"full_attention"} or set(types[full:]) - {"sliding_attention"}:
        raise ValueError(
            f"{where}: layer_types is supported only as full_attention layers, then"
            " sliding_attention ones"
        )
    if full < layers and window is None:
        raise ValueError(f"{where}: layer_types has sliding_attention without a sliding_window")
    return (None, 0) if full == layers else (window, full)


def _read_gpt2(raw: Mapping[str, Any], where: str) -> DecoderConfig:
    for key, wanted in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if bool(raw.get(key, wanted)) != wanted:
            raise ValueError(f"{where}: {key}={raw[key]} is not supported; only {wanted} is")
    hidden, heads = raw["n_embd"], raw["n_head"]
    return DecoderConfig(
        architecture="gpt2",
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        intermediate_size=raw.get("n_inner") or 4 * hidden,
        num_layers=raw["n_layer"],
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        max_position=raw.get("n_positions", 1024),
        rope_theta=None,
        norm="layer",
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        activation=raw.get("activation_function", "gelu_new"),
        gated_mlp=False,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tie_embeddings=bool(raw.get("tie_word_embeddings", True)),
        initializer_range=raw.get("initializer_range", 0.02),
        **_token_ids(raw),
    )


# ---------------------------------------------------------------- writing config.json


def _common(config: DecoderConfig) -> dict[str, Any]:
    eos = config.eos_token_id
    return {
        "architectures": [FAMILIES[config.architecture].classes[0]],
        "model_type": config.architecture,
        "vocab_size": config.vocab_size,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "pad_token_id": config.pad_token_id,
        "dtype": config.param_dtype,
        "use_cache": True,
    }


def _write_rotary(config: DecoderConfig) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default"}
    scaling = config.rope_scaling
    if scaling is not None:
        rope = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            rope["low_freq_factor"] = scaling.low_freq_factor
            rope["high_freq_factor"] = scaling.high_freq_factor
            rope["original_max_position_embeddings"] = scaling.original_max_position
    family: dict[str, Any] = {
        "llama": {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias},
        "mistral": {"sliding_window": config.sliding_window},
        "qwen2": {
            "use_sliding_window": config.sliding_window is not None,
            "sliding_window": config.sliding_window,
            "max_window_layers": config.full_layers
            if config.sliding_window is not None
            else config.num_layers,
        },
    }[config.architecture]
    return {
        **_common(config),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.activation,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {**rope, "rope_theta": config.rope_theta},
        # The older spelling beside the newer one, for readers of before transformers 5.
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if scaling is not None else None,
        **family,
    }


def _write_gpt2(config: DecoderConfig) -> dict[str, Any]:
    return {
        **_common(config),
        "n_embd": config.hidden_size,
        "n_inner": config.intermediate_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_position,
        "activation_function": config.activation,
        "layer_norm_epsilon": config.norm_eps,
    }


@dataclass(frozen=True)
class Family:
    """How one `model_type` is read and written; `classes` are its names in `architectures`."""

    classes: tuple[str, ...]
    read: Any
    write: Any


FAMILIES = {
    "llama": Family(("LlamaForCausalLM",), _read_rotary, _write_rotary),
    "mistral": Family(("MistralForCausalLM",), _read_rotary, _write_rotary),
    "qwen2": Family(("Qwen2ForCausalLM",), _read_rotary, _write_rotary),
    "gpt2": Family(("GPT2LMHeadModel",), _read_gpt2, _write_gpt2),
}
