"""Hugging Face's config.json, read into the fields of a `DecoderConfig` and written from one.

A key that changes the logits is read as `transformers` reads it, or refused by name before a weight
is read. Keys that its model classes do not read are ignored here as there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskpgm.models import hf_keys

ACTIVATION_NAMES = ("silu", "gelu_new")
ROPE_KINDS = ("default", "linear", "llama3")
GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def read(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a DecoderConfig (rope_scaling as a dict of its own fields, or None).

    Raises ValueError, opening with `where` and naming the key, for what is not supported.
    """
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f"{where}: architecture {kind!r} is not supported; model_type must be one of"
            f" {', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    raw = {family.aliases.get(key, key): value for key, value in raw.items()}
    hf_keys.check(raw, hf_keys.MODEL, where)
    hf_keys.check_fixed(raw, hf_keys.MODEL_FIXED, where)
    for name, code in (raw.get("auto_map") or {}).items():
        if name == "AutoConfig" or name.startswith("AutoModel"):
            raise ValueError(
                f"{where}: auto_map has {name} = {code!r}, code of the model's own; it never runs"
                " here, and without it this may be another model"
            )
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
        fields = family.read(raw, where)
    except KeyError as error:
        raise ValueError(f"{where}: key {error.args[0]!r} is missing") from None
    if fields["activation"] not in ACTIVATION_NAMES:
        raise ValueError(
            f"{where}: activation {fields['activation']!r} is not supported; only"
            f" {', '.join(ACTIVATION_NAMES)} are"
        )
    return fields


def write(config) -> dict[str, Any]:
    """The content of a config.json for a DecoderConfig, in both spellings where they differ."""
    return FAMILIES[config.architecture].write(config)


def _token_ids(raw: Mapping[str, Any], **defaults: int) -> dict[str, Any]:
    """A key that is missing has the default of its family; null is no token."""
    ids = {key: raw.get(key, defaults.get(key)) for key in hf_keys.TOKEN_IDS}
    return {key: tuple(x) if isinstance(x, list | tuple) else x for key, x in ids.items()}


def _rope(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Both spellings: `rope_parameters` (transformers 5) and `rope_theta` + `rope_scaling` (4)."""
    # `rope_scaling`, where it is not empty, replaces `rope_parameters` whole, as in transformers.
    rope = raw.get("rope_scaling") or raw.get("rope_parameters") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ValueError(f"{where}: rope scaling that differs between layers is not supported")
    if kind not in ROPE_KINDS:
        raise ValueError(
            f"{where}: rope scaling {kind!r} is not supported; only {', '.join(ROPE_KINDS)} are"
        )
    hf_keys.check(rope, hf_keys.ROPE, f"{where}: rope scaling")
    partial = rope.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ValueError(f"{where}: partial_rotary_factor {partial} is not supported; only 1.0 is")
    theta = rope.get("rope_theta") or raw.get("rope_theta") or 10000.0
    scaling = None
    if kind != "default":
        scaling = {"kind": kind, "factor": float(rope["factor"])}
        if kind == "llama3":
            original = raw.get("original_max_position_embeddings")
            original = original or rope.get("original_max_position_embeddings")
            scaling["low_freq_factor"] = float(rope["low_freq_factor"])
            scaling["high_freq_factor"] = float(rope["high_freq_factor"])
            scaling["original_max_position"] = int(original or raw["max_position_embeddings"])
    return {"rope_theta": float(theta), "rope_scaling": scaling}


def _read_rotary(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """llama, mistral and qwen2: one computation, other biases, windows and defaults."""
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
    token_defaults = {} if kind == "qwen2" else {"bos_token_id": 1, "eos_token_id": 2}
    window, full = _window(raw, where, layers)
    return dict(
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
        **_token_ids(raw, **token_defaults),
    )


def _window(raw: Mapping[str, Any], where: str, layers: int) -> tuple[int | None, int]:
    """(sliding window, number of leading layers that do not use it).

    Of Mistral models with layer_types, `transformers` makes Ministral ones: Mistral with a window
    in some layers only.
    """
    kind = raw["model_type"]
    window, types = raw.get("sliding_window", 4096), raw.get("layer_types")
    if kind == "llama":
        if set(types or ()) - {"full_attention"}:
            raise ValueError(
                f"{where}: layer_types of a llama model are all full_attention, not"
                f" {', '.join(types or ())}"
            )
        return None, 0
    if kind == "qwen2":
        window = window if raw.get("use_sliding_window", False) else None
    if types is None:
        full = 0 if kind == "mistral" else min(raw.get("max_window_layers", 28), layers)
        return (None, 0) if window is None or full == layers else (window, full)
    if len(types) != layers:
        raise ValueError(f"{where}: layer_types has {len(types)} entries for {layers} layers")
    full = types.index("sliding_attention") if "sliding_attention" in types else layers
    if set(types[:full]) - {"full_attention"} or set(types[full:]) - {"sliding_attention"}:
        raise ValueError(
            f"{where}: layer_types is supported only as full_attention layers, then"
            f" sliding_attention ones, not {', '.join(types)}"
        )
    if full < layers and window is None:
        raise ValueError(f"{where}: layer_types has sliding_attention without a sliding_window")
    return (None, 0) if full == layers else (window, full)


def _read_gpt2(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    hidden, heads = raw["n_embd"], raw["n_head"]
    return dict(
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
        **_token_ids(raw, bos_token_id=50256, eos_token_id=50256),
    )


# ---------------------------------------------------------------- writing config.json


def _common(config) -> dict[str, Any]:
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


def _write_rotary(config) -> dict[str, Any]:
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
        "mistral": {"sliding_window": config.sliding_window, **_mixed_layers(config)},
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


def _mixed_layers(config) -> dict[str, Any]:
    """layer_types where not all layers are alike; there `transformers` opens a Ministral model."""
    if not config.full_layers:
        return {}
    kinds = ["full_attention" if w is None else "sliding_attention" for w in config.windows]
    return {"layer_types": kinds}


def _write_gpt2(config) -> dict[str, Any]:
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
    """How one `model_type` is read and written; `classes` are its names in `architectures`, and
    `aliases` are second names of its keys."""

    classes: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str], dict[str, Any]]
    write: Callable[[Any], dict[str, Any]]
    aliases: Mapping[str, str] = field(default_factory=dict)


FAMILIES = {
    "llama": Family(("LlamaForCausalLM",), _read_rotary, _write_rotary),
    "mistral": Family(("MistralForCausalLM", "MinistralForCausalLM"), _read_rotary, _write_rotary),
    "qwen2": Family(("Qwen2ForCausalLM",), _read_rotary, _write_rotary),
    "gpt2": Family(("GPT2LMHeadModel",), _read_gpt2, _write_gpt2, GPT2_ALIASES),
}
