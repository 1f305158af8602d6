"""Of what kind the values of a model's JSON files must be: checked once, before any is used.

A file that says `"16"` for 16 is refused by its key, not by what fails with it three calls later.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A set of values, and its name in an error."""

    name: str
    holds: Callable[[Any], bool]


def _or_null(kind: Kind) -> Kind:
    return Kind(f"{kind.name} or null", lambda x: x is None or kind.holds(x))


def _number(x: Any) -> bool:
    plain = isinstance(x, int | float) and not isinstance(x, bool)
    return plain and abs(x) <= sys.float_info.max  # which NaN is not


COUNT = Kind("a whole number above 0", lambda x: _number(x) and isinstance(x, int) and x > 0)
INDEX = Kind("a whole number from 0", lambda x: _number(x) and isinstance(x, int) and x >= 0)
POSITIVE = Kind("a number above 0", lambda x: _number(x) and x > 0)
SHARE = Kind("a number from 0 to below 1", lambda x: _number(x) and 0 <= x < 1)
SWITCH = Kind("true or false", lambda x: isinstance(x, bool))
TEXT = Kind("a string", lambda x: isinstance(x, str))
COUNT_OR_NULL, POSITIVE_OR_NULL, SWITCH_OR_NULL = map(_or_null, (COUNT, POSITIVE, SWITCH))
OBJECT_OR_NULL = _or_null(Kind("an object", lambda x: isinstance(x, Mapping)))
NUMBERS_OR_NULL = _or_null(
    Kind(
        "an object of numbers above 0",
        lambda x: isinstance(x, Mapping) and all(map(POSITIVE.holds, x.values())),
    )
)
NAMES_OR_NULL = _or_null(
    Kind(
        "a list of strings",
        lambda x: isinstance(x, list | tuple) and all(isinstance(name, str) for name in x),
    )
)
TOKENS_OR_NULL = _or_null(
    Kind(
        "a token's number or a list of them",
        lambda x: all(
            isinstance(i, int) and not isinstance(i, bool)
            for i in (x if isinstance(x, list | tuple) else [x])
        ),
    )
)

# ---------------------------------------------------------------- what each file's keys hold

# A model's config.json.
MODEL = {
    **dict.fromkeys(
        (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "n_embd",
            "n_layer",
            "num_attention_heads",
            "n_head",
            "max_position_embeddings",
            "n_positions",
        ),
        COUNT,
    ),
    **dict.fromkeys(
        (
            "num_key_value_heads",
            "head_dim",
            "n_inner",
            "sliding_window",
            "original_max_position_embeddings",
        ),
        COUNT_OR_NULL,
    ),
    "max_window_layers": INDEX,
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon"), POSITIVE),
    "rope_theta": POSITIVE_OR_NULL,
    **dict.fromkeys(
        (
            "attention_bias",
            "mlp_bias",
            "tie_word_embeddings",
            "use_sliding_window",
            "scale_attn_weights",
            "scale_attn_by_inverse_layer_idx",
            "add_cross_attention",
        ),
        SWITCH_OR_NULL,
    ),
    **dict.fromkeys(("hidden_act", "activation_function"), TEXT),
    **dict.fromkeys(("rope_parameters", "rope_scaling", "quantization_config"), OBJECT_OR_NULL),
    **dict.fromkeys(("architectures", "layer_types"), NAMES_OR_NULL),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), TOKENS_OR_NULL),
}
# Its rope_parameters and rope_scaling.
ROPE = {
    "factor": POSITIVE,
    "low_freq_factor": POSITIVE,
    "high_freq_factor": POSITIVE,
    "rope_theta": POSITIVE_OR_NULL,
    "original_max_position_embeddings": COUNT_OR_NULL,
}
# An adapter_config.json of PEFT.
ADAPTER = {
    "r": COUNT,
    "lora_alpha": POSITIVE,
    "lora_dropout": SHARE,
    "alpha_pattern": NUMBERS_OR_NULL,
    "use_rslora": SWITCH_OR_NULL,
}


def check(raw: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> None:
    """Raises ValueError, opening with `where` and naming the key, for a value of another kind than
    `kinds` tells. Keys that are missing are not its concern."""
    for key, kind in kinds.items():
        if key in raw and not kind.holds(raw[key]):
            raise ValueError(f"{where}: {key} must be {kind.name}, not {raw[key]!r}")
