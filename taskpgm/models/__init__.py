"""What predicts: one decoder for Llama, Mistral, Qwen2 and GPT-2, its adapters, its files."""

from taskpgm.models.config import DecoderConfig, LoraConfig, RopeScaling
from taskpgm.models.decoder import (
    Decoder,
    init_lora,
    init_params,
    logical_axes,
    lora_logical_axes,
    trained_variables,
    unembedding,
    variables,
)
from taskpgm.models.generate import generate
from taskpgm.models.hf_export import save_hf, to_host
from taskpgm.models.hf_hub import find_model
from taskpgm.models.hf_weights import check_hf, load_hf
from taskpgm.models.lora import merge_lora
from taskpgm.models.peft import fit_lora, load_peft, save_peft

__all__ = [
    "Decoder",
    "DecoderConfig",
    "LoraConfig",
    "RopeScaling",
    "check_hf",
    "find_model",
    "fit_lora",
    "generate",
    "init_lora",
    "init_params",
    "load_hf",
    "load_peft",
    "logical_axes",
    "lora_logical_axes",
    "merge_lora",
    "save_hf",
    "save_peft",
    "to_host",
    "trained_variables",
    "unembedding",
    "variables",
]
