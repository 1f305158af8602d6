"""Hugging Face folders in and out, tensor by tensor, by one reversible table of names.

torch is never imported, and the model is never whole on the host: a tensor is read, placed into its
shard, and written into its layer of the stacked parameter before the next one is read.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from taskpgm.models.config import DecoderConfig
from taskpgm.models.decoder import init_params, logical_axes
from taskpgm.models.lora import merge_kernel
from taskpgm.models.safetensors_file import (
    DTYPES,
    Entry,
    read_header,
    read_tensor,
    replacing,
    write_file,
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9

# ---------------------------------------------------------------- the table of names


class Source(NamedTuple):
    """Where one of our parameters lies in a file: `{i}` in the name is the layer."""

    name: str
    transpose: bool = False  # torch's Linear holds [out, in], ours is [in, out]
    part: int | None = None  # one of three equal parts of the last axis (GPT-2's fused c_attn)


def _linear(ours: str, theirs: str) -> dict[str, Source]:
    return {
        f"layers/{ours}/kernel": Source(f"layers.{{i}}.{theirs}.weight", transpose=True),
        f"layers/{ours}/bias": Source(f"layers.{{i}}.{theirs}.bias"),
    }


def _conv1d(ours: str, theirs: str, part: int | None = None) -> dict[str, Source]:
    return {
        f"layers/{ours}/kernel": Source(f"h.{{i}}.{theirs}.weight", part=part),
        f"layers/{ours}/bias": Source(f"h.{{i}}.{theirs}.bias", part=part),
    }


def _layer_norm(ours: str, theirs: str) -> dict[str, Source]:
    return {f"{ours}/scale": Source(f"{theirs}.weight"), f"{ours}/bias": Source(f"{theirs}.bias")}


HEAD = {"head": Source("lm_head.weight", transpose=True)}
ROTARY_NAMES = {
    "embedding": Source("embed_tokens.weight"),
    "final_norm/scale": Source("norm.weight"),
    "layers/attention_norm/scale": Source("layers.{i}.input_layernorm.weight"),
    "layers/mlp_norm/scale": Source("layers.{i}.post_attention_layernorm.weight"),
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
    "embedding": Source("wte.weight"),
    "position_embedding": Source("wpe.weight"),
    **_layer_norm("final_norm", "ln_f"),
    **_layer_norm("layers/attention_norm", "h.{i}.ln_1"),
    **_layer_norm("layers/mlp_norm", "h.{i}.ln_2"),
    **_conv1d("attention/q_proj", "attn.c_attn", 0),
    **_conv1d("attention/k_proj", "attn.c_attn", 1),
    **_conv1d("attention/v_proj", "attn.c_attn", 2),
    **_conv1d("attention/o_proj", "attn.c_proj"),
    **_conv1d("mlp/up_proj", "mlp.c_fc"),
    **_conv1d("mlp/down_proj", "mlp.c_proj"),
    **HEAD,
}


class Names(NamedTuple):
    prefix: str  # of all names but lm_head; some published files leave it out
    table: dict[str, Source]


NAMES = {
    "llama": Names("model.", ROTARY_NAMES),
    "mistral": Names("model.", ROTARY_NAMES),
    "qwen2": Names("model.", ROTARY_NAMES),
    "gpt2": Names("transformer.", GPT2_NAMES),
}
# Constants that older versions of transformers stored beside the weights.
BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)|.*rotary_emb\.inv_freq")


def _flat_shapes(config: DecoderConfig) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = jax.eval_shape(partial(init_params, config), jax.random.key(0))
    return flatten_dict(shapes, sep="/")


def _file_shape(source: Source, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of the tensor in the file, given our shape without the layer axis."""
    if source.part is not None:
        return (*shape[:-1], 3 * shape[-1])
    return shape[::-1] if source.transpose else shape


def _sources(config: DecoderConfig) -> Iterator[tuple[str, int | None, Source, tuple[int, ...]]]:
    """(our path, layer or None, its source with the layer filled in, the file's shape), in order."""
    for path, leaf in _flat_shapes(config).items():
        source = NAMES[config.architecture].table[path]
        layers = range(config.num_layers) if path.startswith("layers/") else (None,)
        for i in layers:
            shape = leaf.shape if i is None else leaf.shape[1:]
            filled = source._replace(name=source.name.format(i=i))
            yield path, i, filled, _file_shape(source, shape)


# ---------------------------------------------------------------- reading


def load_hf(path: str | Path, *, dtype: str = "float32", mesh=None, rules=None):
    """(DecoderConfig, params) of a folder with config.json and safetensors, one file or many.

    `dtype` becomes the type of parameters and computation. With a mesh and rules
    (`rules.spec(logical axes) -> PartitionSpec`) every tensor goes straight into its shards; without,
    to the default device. Peak host memory stays under the model's size plus two tensors.

    Raises FileNotFoundError or ValueError, naming file and tensor, before any weight is read, for an
    unsupported model or a folder whose tensors are not exactly those of its config.
    """
    folder = Path(path)
    config = replace(DecoderConfig.from_hf(folder), dtype=dtype, param_dtype=dtype)
    entries = _check(folder, config, _find(folder, NAMES[config.architecture].prefix))
    names = flatten_dict(logical_axes(config), sep="/")
    params = {}
    for leaf, shape in _flat_shapes(config).items():
        spec = PartitionSpec() if mesh is None else rules.spec(names[leaf])
        source = NAMES[config.architecture].table[leaf]
        params[leaf] = _load_leaf(leaf, shape, source, entries, mesh, spec)
    return config, unflatten_dict(params, sep="/")


def _load_leaf(leaf: str, shape, source: Source, entries: dict[str, Entry], mesh, spec):
    """One of our parameters: a stack is made empty in its shards, then filled layer by layer."""
    spec = (*spec, *[None] * (len(shape.shape) - len(spec)))

    def sharding(axes):
        return None if mesh is None else NamedSharding(mesh, PartitionSpec(*axes))

    def place(name: str, axes) -> jax.Array:
        tensor = read_tensor(entries[name])
        if source.part is not None:
            size = tensor.shape[-1] // 3
            tensor = tensor[..., source.part * size : (source.part + 1) * size]
        axes = axes[::-1] if source.transpose else axes
        if mesh is None:
            return jnp.asarray(tensor)
        pick = lambda index: np.ascontiguousarray(tensor[index])  # noqa: E731
        return jax.make_array_from_callback(tensor.shape, sharding(axes), pick)

    def turned(x):
        return (x.T if source.transpose else x).astype(shape.dtype)

    if not leaf.startswith("layers/"):
        return jax.jit(turned, out_shardings=sharding(spec))(place(source.name, spec))

    empty = jax.jit(partial(jnp.zeros, shape.shape, shape.dtype), out_shardings=sharding(spec))
    fill = jax.jit(
        lambda stack, x, i: jax.lax.dynamic_update_index_in_dim(stack, turned(x), i, 0),
        donate_argnums=0,
        out_shardings=sharding(spec),
    )
    stack = empty()
    for i in range(shape.shape[0]):
        # Waiting keeps one tensor in flight: the queue of a device would otherwise hold them all.
        stack = jax.block_until_ready(fill(stack, place(source.name.format(i=i), spec[1:]), i))
    return stack


def _find(folder: Path, prefix: str) -> dict[str, Entry]:
    """Every tensor of the folder by its name without the prefix. Reads headers only."""
    if (folder / WEIGHTS).is_file():
        entries = read_header(folder / WEIGHTS)
    elif (folder / INDEX).is_file():
        entries = _read_index(folder)
    else:
        hint = "save the model with transformers' save_pretrained"
        old = [
            name
            for name in ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5")
            if (folder / name).exists()
        ]
        found = f"only {old[0]}, which is not read; " if old else ""
        raise FileNotFoundError(f"{folder}: no weights ({WEIGHTS} or {INDEX}); {found}{hint}")
    return {name.removeprefix(prefix): entry for name, entry in entries.items()}


def _read_index(folder: Path) -> dict[str, Entry]:
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / INDEX}: not a JSON object with a weight_map") from None
    headers = {}
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: named in {INDEX}, but there is no such file")
        headers[name] = read_header(folder / name)
    for tensor, name in weight_map.items():
        if tensor not in headers[name]:
            raise ValueError(f"{folder / name}: tensor {tensor} is missing, though {INDEX} has it")
    return {tensor: headers[name][tensor] for tensor, name in weight_map.items()}


def _check(folder: Path, config: DecoderConfig, entries: dict[str, Entry]) -> dict[str, Entry]:
    """The entries, once they are exactly what the config asks for."""
    prefix = NAMES[config.architecture].prefix
    wanted = {source.name: shape for _, _, source, shape in _sources(config)}
    for name, shape in wanted.items():
        full = name if name == "lm_head.weight" else prefix + name
        if name not in entries:
            raise ValueError(f"{folder}: tensor {full} is missing; its config.json asks for it")
        entry = entries[name]
        if entry.dtype not in DTYPES:
            raise ValueError(
                f"{entry.file}: tensor {full} has type {entry.dtype} (quantised?), which is not"
                f" supported; only {', '.join(DTYPES)} are"
            )
        if entry.shape != shape:
            raise ValueError(
                f"{entry.file}: tensor {full} has shape {list(entry.shape)}, but config.json"
                f" makes it {list(shape)}"
            )
    tied = config.tie_embeddings and "lm_head.weight" in entries
    for name, entry in entries.items():
        if name not in wanted and not BUFFERS.fullmatch(name) and not (tied and name in HEAD_NAMES):
            raise ValueError(
                f"{entry.file}: tensor {name} is not part of a {config.architecture} model"
            )
    if tied:
        table = NAMES[config.architecture].table
        embedding, head = entries[table["embedding"].name], entries["lm_head.weight"]
        if head.shape != embedding.shape or not np.array_equal(
            read_tensor(head), read_tensor(embedding)
        ):
            raise ValueError(
                f"{head.file}: tie_word_embeddings is true, but lm_head.weight differs from the"
                " embedding; set it to false in config.json"
            )
    return entries


HEAD_NAMES = ("lm_head.weight",)

# ---------------------------------------------------------------- writing


def save_hf(
    path: str | Path, config: DecoderConfig, params, lora=None, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a folder that `transformers` opens: config.json and safetensors, adapters merged in.

    Each file appears under its name only when it is whole, and config.json, without which nobody opens
    the folder, comes last. Other files of the folder (a tokenizer's) are left alone. Tensors are
    fetched from their shards one at a time; with many hosts all must call this, and the first writes.
    """
    folder = Path(path)
    tensors = _tensors(config, params, lora)
    files = _split(tensors, shard_bytes)
    writer = jax.process_index() == 0
    if writer:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").unlink(missing_ok=True)
    for name, names in files.items():
        shapes = {tensor: tensors[tensor][:2] for tensor in names}
        if writer:
            write_file(folder / name, shapes, lambda t: tensors[t][2](), {"format": "pt"})
        else:
            for tensor in names:  # take part in the gathering
                tensors[tensor][2]()
    if not writer:
        return
    for old in folder.glob("model*.safetensors*"):
        if old.name not in files:
            old.unlink()
    if len(files) > 1:
        weight_map = {tensor: name for name, names in files.items() for tensor in names}
        total = sum(_bytes(*tensors[tensor][:2]) for tensor in tensors)
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    dtype = str(jax.tree.leaves(params)[0].dtype)
    _write_json(folder / "config.json", {**config.to_hf(), "dtype": dtype})


def _tensors(config: DecoderConfig, params, lora) -> dict[str, tuple[tuple, Any, Callable]]:
    """File name -> (shape, type, function that fetches it), of the whole model."""
    flat = flatten_dict(params, sep="/")
    adapters = {} if lora is None else flatten_dict(lora, sep="/")
    prefix = NAMES[config.architecture].prefix

    def fetch(leaf: str, i: int | None, transpose: bool) -> np.ndarray:
        x = flat[leaf] if i is None else flat[leaf][i]
        stem = leaf.removesuffix("kernel")
        if stem + "a" in adapters and leaf.endswith("/kernel"):
            x = merge_kernel(x, adapters[stem + "a"][i], adapters[stem + "b"][i], config.lora.scale)
        x = to_host(x)
        return x.T if transpose else x

    parts: dict[str, list] = {}
    for leaf, i, source, shape in _sources(config):
        name = source.name if source.name in HEAD_NAMES else prefix + source.name
        one = partial(fetch, leaf, i, source.transpose)
        parts.setdefault(name, []).append((source.part or 0, one, shape, flat[leaf].dtype))

    def whole(pieces) -> np.ndarray:
        ordered = sorted(pieces, key=lambda piece: piece[0])
        arrays = [one() for _, one, _, _ in ordered]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)

    return {
        name: (pieces[0][2], pieces[0][3], partial(whole, pieces)) for name, pieces in parts.items()
    }


def to_host(x) -> np.ndarray:
    """One array, gathered from wherever its shards are."""
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def _bytes(shape: tuple[int, ...], dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _split(tensors: dict[str, tuple], shard_bytes: int) -> dict[str, list[str]]:
    """File name -> its tensors, each file at most `shard_bytes` unless one tensor alone exceeds it."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, (shape, dtype, _) in tensors.items():
        bytes_ = _bytes(shape, dtype)
        if shards[-1] and size + bytes_ > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += bytes_
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    count = len(shards)
    return {f"model-{k:05d}-of-{count:05d}.safetensors": s for k, s in enumerate(shards, 1)}


def _write_json(path: Path, content) -> None:
    with replacing(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
