"""Make the golden files of this folder: `python tests/golden/make.py` (torch, transformers, peft).

Each .npz is a random tiny checkpoint as `transformers` writes it (config.json, tensors), with what
torch computes from it in float32: the logits of two rows, the greedy continuation of one, and,
where an adapter is there too, the logits under `peft`. Weights are rounded to float16: small files.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file

SHAPE = dict(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    initializer_range=0.25,
    bos_token_id=1,
    eos_token_id=2,
)
GPT2 = dict(
    vocab_size=64,
    n_embd=32,
    n_layer=2,
    n_head=4,
    n_positions=64,
    initializer_range=0.25,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA3 = dict(  # of the four frequencies of these heads one is kept, one blended, two divided
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=0.5,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
LINEAR = dict(rope_type="linear", rope_theta=500000.0, factor=4.0)
Llama, Mistral, Qwen2 = (
    transformers.LlamaConfig,
    transformers.MistralConfig,
    transformers.Qwen2Config,
)
CONFIGS = {
    "llama": Llama(**SHAPE),
    "llama_mha_tied": Llama(**SHAPE | {"num_key_value_heads": 4}, tie_word_embeddings=True),
    "llama_biases": Llama(**SHAPE, attention_bias=True, mlp_bias=True),
    "llama_linear": Llama(**SHAPE, rope_parameters=LINEAR),
    "llama_llama3": Llama(**SHAPE | {"max_position_embeddings": 512}, rope_parameters=LLAMA3),
    "mistral": Mistral(**SHAPE, sliding_window=5),
    "qwen2": Qwen2(**SHAPE),
    "qwen2_tied_window": Qwen2(
        **SHAPE,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
    ),
    "gpt2": transformers.GPT2Config(**GPT2),
}
ADAPTERS = {"llama": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}


def make(name: str, config) -> dict[str, np.ndarray]:
    torch.manual_seed(len(name))
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases away from 0, norms away from 1
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
        parameter.data = parameter.data.half().float()  # not the buffers: rotary frequencies
    tokens = torch.randint(0, 64, (2, 24))
    with torch.no_grad():
        content = {"tokens": tokens.numpy(), "logits": model(tokens).logits.numpy()}
        greedy = model.generate(
            tokens[:1, :8],
            attention_mask=torch.ones(1, 8, dtype=torch.int64),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        content["greedy"] = greedy[0, 8:].numpy()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        content["config"] = np.array((Path(folder) / "config.json").read_text())
        tensors = load_file(Path(folder) / "model.safetensors")
        content |= {f"tensor:{key}": x.astype(np.float16) for key, x in tensors.items()}
    if name in ADAPTERS:
        content |= adapt(model, tokens, ADAPTERS[name], fan_in_fan_out=name == "gpt2")
    return content


def adapt(model, tokens, targets: list[str], fan_in_fan_out: bool) -> dict[str, np.ndarray]:
    config = peft.LoraConfig(
        r=4,
        lora_alpha=10,
        target_modules=targets,
        init_lora_weights=False,
        fan_in_fan_out=fan_in_fan_out,
    )
    adapted = peft.get_peft_model(model, config).eval()
    for key, parameter in adapted.named_parameters():
        if "lora_" in key:
            parameter.data = parameter.data.half().float()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        content = {"adapter:logits": adapted(tokens).logits.numpy()}
        adapted.save_pretrained(folder)
        settings = json.loads((Path(folder) / "adapter_config.json").read_text())
        settings["base_model_name_or_path"] = ""
        content["adapter:config"] = np.array(json.dumps(settings))
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
        return content | {f"adapter:{key}": x.astype(np.float16) for key, x in tensors.items()}


if __name__ == "__main__":
    for name, config in CONFIGS.items():
        np.savez_compressed(Path(__file__).parent / f"{name}.npz", **make(name, config))
