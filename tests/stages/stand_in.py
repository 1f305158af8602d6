"""Random models of every family, small enough for a test, as Hugging Face folders."""

from functools import partial
from pathlib import Path

FAMILIES = {
    "llama": {"architectures": ["LlamaForCausalLM"], "num_key_value_heads": 2},
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "num_key_value_heads": 1,
        "sliding_window": 16,
    },
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 1},
}

GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 64,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def stand_in(folder: Path, family: str) -> Path:
    """A random model of a family, with a small tokenizer, as a Hugging Face folder."""
    import jax

    from taskpgm import models, tasks

    words = ["upper shout reverse length w0123456789 abcdefghij ABCDEFGHIJ !: " * 8]
    tokenizer = tasks.corpus.train_tokenizer(words, 300)
    described = (
        GPT2
        if family == "gpt2"
        else {
            "model_type": family,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 128,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            **FAMILIES[family],
        }
    )
    config = models.DecoderConfig.from_hf(
        described | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    )
    params = jax.jit(partial(models.init_params, config))(jax.random.key(0))
    models.save_hf(folder, config, params)
    tokenizer.save_pretrained(folder)
    return folder
