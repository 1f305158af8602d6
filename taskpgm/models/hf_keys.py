"""What each key of config.json, generation_config.json and adapter_config.json may hold.

Values are checked once, before any is used: a file that says `"16"` for 16 is refused by its key,
not by what fails with it three calls later. A key is read, or it is fixed (only the value that we
compute is accepted), or it has no effect on the logits. tests/models/test_hf_keys.py holds these
tables against the keys that transformers and peft read.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Check:
    """A set of allowed values, and its name in an error."""

    name: str
    allows: Callable[[Any], bool]


def _or_null(check: Check) -> Check:
    return Check(f"{check.name} or null", lambda x: x is None or check.allows(x))


def _number(x: Any) -> bool:
    plain = isinstance(x, int | float) and not isinstance(x, bool)
    return plain and abs(x) <= sys.float_info.max  # which NaN is not


LARGEST = 2**31 - 1  # what an index of 32 bits reaches
MOST_LAYERS = 10_000


def _whole(x: Any, least: int, most: int) -> bool:
    return isinstance(x, int) and not isinstance(x, bool) and least <= x <= most


COUNT = Check("a whole number above 0", lambda x: _whole(x, 1, LARGEST))
LAYERS = Check(f"a whole number from 1 to {MOST_LAYERS}", lambda x: _whole(x, 1, MOST_LAYERS))
INDEX = Check("a whole number from 0", lambda x: _whole(x, 0, LARGEST))
POSITIVE = Check("a number above 0", lambda x: _number(x) and x > 0)
NOT_NEGATIVE = Check("a number from 0", lambda x: _number(x) and x >= 0)
FRACTION = Check("a number from 0 to below 1", lambda x: _number(x) and 0 <= x < 1)
BOOL = Check("true or false", lambda x: isinstance(x, bool))
TEXT = Check("a string", lambda x: isinstance(x, str))
COUNT_OR_NULL, POSITIVE_OR_NULL, BOOL_OR_NULL = map(_or_null, (COUNT, POSITIVE, BOOL))
OBJECT_OR_NULL = _or_null(Check("an object", lambda x: isinstance(x, Mapping)))
NUMBERS_OR_NULL = _or_null(
    Check(
        "an object of numbers above 0",
        lambda x: isinstance(x, Mapping) and all(map(POSITIVE.allows, x.values())),
    )
)
RANKS_OR_NULL = _or_null(
    Check(
        "an object of whole numbers above 0",
        lambda x: isinstance(x, Mapping) and all(map(COUNT.allows, x.values())),
    )
)
NAMES_OR_NULL = _or_null(
    Check(
        "a list of strings",
        lambda x: isinstance(x, list | tuple) and all(isinstance(name, str) for name in x),
    )
)
TOKEN = Check("a token's number", lambda x: _whole(x, -1, LARGEST))  # -1 is no token
TOKEN_OR_NULL = _or_null(TOKEN)
TOKENS_OR_NULL = _or_null(
    Check(
        "a token's number or a list of them",
        lambda x: all(map(TOKEN.allows, x if isinstance(x, list | tuple) else [x])),
    )
)

# ---------------------------------------------------------------- config.json

_COUNTS = """vocab_size hidden_size intermediate_size num_attention_heads
    max_position_embeddings n_embd n_head n_positions"""
_COUNTS_OR_NULL = """num_key_value_heads head_dim n_inner sliding_window
    original_max_position_embeddings"""
_BOOLS_OR_NULL = """attention_bias mlp_bias tie_word_embeddings use_sliding_window"""
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
TOKENS = {
    "bos_token_id": TOKEN_OR_NULL,
    "eos_token_id": TOKENS_OR_NULL,
    "pad_token_id": TOKEN_OR_NULL,
}

# Read into a DecoderConfig.
MODEL = {
    **dict.fromkeys(_COUNTS.split(), COUNT),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), LAYERS),
    **dict.fromkeys(_COUNTS_OR_NULL.split(), COUNT_OR_NULL),
    **dict.fromkeys(_BOOLS_OR_NULL.split(), BOOL_OR_NULL),
    **TOKENS,
    **dict.fromkeys(("hidden_act", "activation_function"), TEXT),
    **dict.fromkeys(("rope_parameters", "rope_scaling"), OBJECT_OR_NULL),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_epsilon"), POSITIVE),
    **dict.fromkeys(("architectures", "layer_types"), NAMES_OR_NULL),
    "quantization_config": OBJECT_OR_NULL,
    "auto_map": OBJECT_OR_NULL,
    "initializer_range": NOT_NEGATIVE,
    "max_window_layers": INDEX,
    "rope_theta": POSITIVE_OR_NULL,
}
# Fixed: any other value makes it another function.
MODEL_FIXED = {
    "add_cross_attention": False,
    "is_causal": True,
    "is_encoder_decoder": False,
    "per_layer_config": None,
    "pruned_heads": None,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
    "transformers_weights": None,
}
# What transformers reads of these models besides, without an effect on the logits: dropout (ours is
# that of the adapters), precision and speed, other heads than the language model's.
MODEL_WITHOUT_EFFECT = frozenset(
    """_attn_implementation attention_chunk_size attention_dropout attn_pdrop classifier_dropout
    embd_pdrop hidden_dropout num_labels pad_token_id problem_type reorder_and_upcast_attn
    resid_pdrop summary_activation summary_first_dropout summary_last_dropout
    summary_proj_to_labels summary_type summary_use_proj use_cache""".split()
)
# Its rope_parameters and rope_scaling.
ROPE = {
    "factor": POSITIVE,
    "low_freq_factor": POSITIVE,
    "high_freq_factor": POSITIVE,
    "rope_theta": POSITIVE_OR_NULL,
    "original_max_position_embeddings": COUNT_OR_NULL,
}
GENERATION: dict[str, Check] = TOKENS

# ---------------------------------------------------------------- adapter_config.json of PEFT

ADAPTER = {
    "r": COUNT,
    "lora_alpha": POSITIVE,
    "lora_dropout": FRACTION,
    "alpha_pattern": NUMBERS_OR_NULL,
    "rank_pattern": RANKS_OR_NULL,
    "use_rslora": BOOL_OR_NULL,
}
ADAPTER_FIXED = {
    "peft_type": "LORA",
    "bias": "none",
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "layer_replication": None,
    "layers_to_transform": None,
    "lora_bias": False,
    "megatron_config": None,
    "modules_to_save": None,
    "monteclora_config": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
}
# How the adapter was initialised. Some ways change the base's weights too (PiSSA, OLoRA, CorDA,
# LoftQ, LoRA-GA), and PEFT changes them again when it loads the adapter: those are refused.
ADAPTER_INITS = (True, False, "gaussian", "orthogonal", "eva")
# Names, places and training. Which modules are adapted the tensors tell.
ADAPTER_WITHOUT_EFFECT = frozenset(
    """task_type auto_mapping peft_version base_model_name_or_path revision inference_mode
    target_modules exclude_modules fan_in_fan_out layers_pattern megatron_core
    loftq_config eva_config corda_config lora_ga_config velora_config qalora_group_size
    runtime_config ensure_weight_tying""".split()
)


def check(raw: Mapping[str, Any], checks: Mapping[str, Check], where: str) -> None:
    """Raises ValueError, opening with `where` and naming the key, for a value that its check does
    not allow. A missing key is not an error here."""
    for key, allowed in checks.items():
        if key in raw and not allowed.allows(raw[key]):
            raise ValueError(f"{where}: {key} must be {allowed.name}, not {raw[key]!r}")


def check_fixed(raw: Mapping[str, Any], fixed: Mapping[str, Any], where: str) -> None:
    """Raises ValueError, naming the key, for a fixed key with another value than the fixed one.

    False, null, 0 and empty stand for each other; true and null do not, as in transformers.
    """
    for key, wanted in fixed.items():
        value = raw.get(key, wanted)
        if value != wanted and (value or wanted):
            only = "null" if wanted is None else json.dumps(wanted)
            raise ValueError(
                f"{where}: {key} = {json.dumps(value)} is not supported; only {only} is"
            )
