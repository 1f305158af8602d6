"""One reversible table: our parameters and the tensors of Hugging Face checkpoints."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from flax.traverse_util import flatten_dict

from taskpgm.models.config import DecoderConfig
from taskpgm.models.decoder import abstract_params


class TensorName(NamedTuple):
    """Where one of our parameters lies in a file: `{i}` in the name is the layer."""

    name: str
    transpose: bool = False  # torch's Linear holds [out, in], ours is [in, out]
    part: int | None = None  # one of three equal parts of the last axis (GPT-2's fused c_attn)


def _linear(ours: str, theirs: str) -> dict[str, TensorName]:
    return {
        f"layers/{ours}/kernel": TensorName(f"model.layers.{{i}}.{theirs}.weight", transpose=True),
        f"layers/{ours}/bias": TensorName(f"model.layers.{{i}}.{theirs}.bias"),
    }


def _conv1d(ours: str, theirs: str, part: int | None = None) -> dict[str, TensorName]:
    return {
        f"layers/{ours}/kernel": TensorName(f"transformer.h.{{i}}.{theirs}.weight", part=part),
        f"layers/{ours}/bias": TensorName(f"transformer.h.{{i}}.{theirs}.bias", part=part),
    }


def _layer_norm(ours: str, theirs: str) -> dict[str, TensorName]:
    return {
        f"{ours}/scale": TensorName(f"{theirs}.weight"),
        f"{ours}/bias": TensorName(f"{theirs}.bias"),
    }


HEAD_NAME = "lm_head.weight"
HEAD = {"head": TensorName(HEAD_NAME, transpose=True)}
ROTARY_NAMES = {
    "embedding": TensorName("model.embed_tokens.weight"),
    "final_norm/scale": TensorName("model.norm.weight"),
    "layers/attention_norm/scale": TensorName("model.layers.{i}.input_layernorm.weight"),
    "layers/mlp_norm/scale": TensorName("model.layers.{i}.post_attention_layernorm.weight"),
    **_linear("attention/q_proj", "self_attn.q_proj"),
    **_linear("attention/k_proj", "self_attn.k_proj"),
    **_linear("attention/v_proj", "self_attn.v_proj"),
    **_linear("attention/o_proj", "self_attn.o_proj"),
    **_linear("mlp/gate_proj", "mlp.gate_proj"),
    **_linear("mlp/up_proj", "mlp.up_proj"),
    **_linear("mlp/down_proj", "mlp.down_proj"),
    **HEAD,
}
GPT2_NAMES = {
    "embedding": TensorName("transformer.wte.weight"),
    "position_embedding": TensorName("transformer.wpe.weight"),
    **_layer_norm("final_norm", "transformer.ln_f"),
    **_layer_norm("layers/attention_norm", "transformer.h.{i}.ln_1"),
    **_layer_norm("layers/mlp_norm", "transformer.h.{i}.ln_2"),
    **_conv1d("attention/q_proj", "attn.c_attn", 0),
    **_conv1d("attention/k_proj", "attn.c_attn", 1),
    **_conv1d("attention/v_proj", "attn.c_attn", 2),
    **_conv1d("attention/o_proj", "attn.c_proj"),
    **_conv1d("mlp/up_proj", "mlp.c_fc"),
    **_conv1d("mlp/down_proj", "mlp.c_proj"),
    **HEAD,
}


class Names(NamedTuple):
    prefix: str  # of all names but the head's; some published files leave it out
    table: dict[str, TensorName]


NAMES = {
    "llama": Names("model.", ROTARY_NAMES),
    "mistral": Names("model.", ROTARY_NAMES),
    "qwen2": Names("model.", ROTARY_NAMES),
    "gpt2": Names("transformer.", GPT2_NAMES),
}
# Constants that older versions of transformers stored beside the weights.
BUFFERS = re.compile(r".*\.h\.\d+\.attn\.(bias|masked_bias)|.*rotary_emb\.inv_freq")


def canonical(architecture: str, name: str) -> str:
    """The name as `transformers` writes it today: with the prefix of the family."""
    prefix = NAMES[architecture].prefix
    return name if name == HEAD_NAME or name.startswith(prefix) else prefix + name


def flat_shapes(config: DecoderConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of every parameter, by its path."""
    flat: dict[str, Any] = flatten_dict(abstract_params(config), sep="/")
    return flat


def file_shape(source: TensorName, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the tensor in the file, given ours without the layer axis."""
    if source.part is not None:
        return (*shape[:-1], 3 * shape[-1])
    return shape[::-1] if source.transpose else shape


def tensor_names(
    config: DecoderConfig,
) -> Iterator[tuple[str, int | None, TensorName, tuple[int, ...]]]:
    """For every tensor: our path, the layer or None, its name there, the shape in the file."""
    for path, leaf in flat_shapes(config).items():
        source = NAMES[config.architecture].table[path]
        layers = range(config.num_layers) if path.startswith("layers/") else (None,)
        for i in layers:
            shape = leaf.shape if i is None else leaf.shape[1:]
            filled = source._replace(name=source.name.format(i=i))
            yield path, i, filled, file_shape(source, shape)
