"""The embedded base before it is there (text, tokenizer, shape), and decoders with adapters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from taskpgm import models, tasks


def embedded_text(context: Any) -> tuple[list[str], Any]:
    """Python's documentation and a tokenizer for it. The primary alone makes them, because the
    documentation differs a little between Python versions."""
    section = context.config.embedded
    documentation = tasks.corpus.documentation(context.config.seed)
    # Training a tokenizer is cheap, so it gets more of the training rows than the model.
    read = [x for task in context.tasks for x in task.train[: 4 * section.examples_per_task]]
    texts = documentation + [x.prompt + x.response for x in read]
    return documentation, tasks.corpus.train_tokenizer(texts, section.vocab_size)


def embedded_config(config: Any, tokenizer: Any) -> models.DecoderConfig:
    """Its architecture, as the whole config and its tokenizer say."""
    section = config.embedded
    return models.DecoderConfig.from_hf(
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": len(tokenizer),
            "hidden_size": section.hidden_size,
            "intermediate_size": section.intermediate_size,
            "num_hidden_layers": section.num_layers,
            "num_attention_heads": section.num_heads,
            "num_key_value_heads": section.num_kv_heads,
            "max_position_embeddings": max(2 * config.tasks.length, 512),
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    )


def with_template(tokenizer: Any, path: str) -> Any:
    """A tokenizer with the chat template in a file, if one is named and it has none.

    Raises:
      ValueError: the file is no text.
    """
    if path and not tokenizer.chat_template:
        try:
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        except ValueError as error:
            raise ValueError(f"tasks.chat_template={path}: no UTF-8 text ({error})") from error
    return tokenizer


def with_lora(config: models.DecoderConfig, section: Any) -> models.DecoderConfig:
    """`config` with the LoRA settings of a section, if its `mode` is "lora"."""
    if section.mode != "lora":
        return config
    return replace(config, lora=models.LoraConfig(**section.lora.to_dict()))


def trained_axes(config: models.DecoderConfig) -> Any:
    """Logical axes of what is trained: the adapters, or all weights."""
    return models.lora_logical_axes(config) if config.lora else models.logical_axes(config)
