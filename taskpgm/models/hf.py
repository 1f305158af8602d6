"""Hugging Face folders in and out, tensor by tensor.

torch is never imported, and the model is never whole on the host: a tensor is read, placed into its
shards, and written into its layer of the stacked parameter before the next one is read.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from taskpgm.models.config import DecoderConfig
from taskpgm.models.decoder import logical_axes
from taskpgm.models.lora import merge_kernel
from taskpgm.models.names import BUFFERS, HEAD_NAME, NAMES, Source, canonical, flat_shapes, sources
from taskpgm.models.safetensors_file import (
    DTYPES,
    Entry,
    read_header,
    read_parts,
    read_tensor,
    replacing,
    write_file,
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9

# ---------------------------------------------------------------- reading


def load_hf(path: str | Path, *, dtype: str = "float32", mesh=None, rules=None):
    """(DecoderConfig, params) of a folder with config.json and safetensors, one file or many.

    `dtype` becomes the type of parameters and computation. With a mesh and rules
    (`rules.sharding(mesh, logical axes, shape)`) every tensor goes straight into its shards;
    without, to the default device. Peak host memory stays under the model's size plus two tensors.

    Raises FileNotFoundError or ValueError, naming file and tensor, before any weight is read, for
    an unsupported model or a folder whose tensors are not exactly those of its config.
    """
    if (mesh is None) != (rules is None):
        raise ValueError("load_hf: a mesh and its rules are given together or not at all")
    config, entries = _checked(Path(path))
    config = replace(config, dtype=dtype, param_dtype=dtype)
    names = flatten_dict(logical_axes(config), sep="/")
    params = {}
    for leaf, like in flat_shapes(config).items():
        sharding = None if mesh is None else rules.sharding(mesh, names[leaf], like.shape)
        params[leaf] = _load_leaf(leaf, like, entries, config, sharding)
    return config, unflatten_dict(params, sep="/")


def check_hf(path: str | Path) -> DecoderConfig:
    """Raises what `load_hf` would raise, from headers alone: seconds before hours of training."""
    return _checked(Path(path))[0]


def _checked(folder: Path) -> tuple[DecoderConfig, dict[str, Entry]]:
    config = DecoderConfig.from_hf(folder)
    entries = _find(folder, config)
    _check(folder, config, entries)
    return config, entries


def _load_leaf(
    leaf: str,
    like: jax.ShapeDtypeStruct,
    entries: dict[str, Entry],
    config: DecoderConfig,
    sharding: NamedSharding | None,
) -> jax.Array:
    """One of our parameters: a stack is made empty in its shards, then filled layer by layer."""
    source = NAMES[config.architecture].table[leaf]
    convert, fill = _programs(source.transpose, like.dtype, sharding)
    if not leaf.startswith("layers/"):
        tensor = _place(entries[source.name], source, sharding, 0, {})
        return jax.block_until_ready(convert(tensor))
    stack, room = jnp.zeros(like.shape, like.dtype, device=sharding), {}
    for i in range(config.num_layers):
        tensor = _place(entries[source.name.format(i=i)], source, sharding, 1, room)
        # Without waiting, a device's queue would hold every layer's tensor at once, and the next
        # one would be read into the memory of this one.
        stack = jax.block_until_ready(fill(stack, tensor, i))
    return stack


@lru_cache(maxsize=256)
def _programs(transpose: bool, dtype, sharding: NamedSharding | None) -> tuple[Callable, Callable]:
    """tensor -> our array of it, and (stack, tensor, i) -> the stack with our array in layer i."""

    def ours(tensor):
        return (tensor.T if transpose else tensor).astype(dtype)

    def fill(stack, tensor, i):
        return jax.lax.dynamic_update_index_in_dim(stack, ours(tensor), i, 0)

    whole = jax.jit(ours, out_shardings=sharding)
    return whole, jax.jit(fill, donate_argnums=0, out_shardings=sharding)


def _place(
    entry: Entry, source: Source, sharding: NamedSharding | None, skip: int, room: dict
) -> jax.Array:
    """The tensor, laid out as in its file, on its devices; it lacks the first `skip` axes.

    `room` keeps the host's copy of each part, for the next tensor of the same shape: a CPU device
    computes on that memory itself, so the result has to be used before the next call.
    """
    shape, first = entry.shape, 0
    if source.part is not None:
        shape = (*shape[:-1], shape[-1] // 3)
        first = source.part * shape[-1]

    def in_file(index: tuple[slice, ...]) -> tuple[slice, ...]:
        start, stop, _ = index[-1].indices(shape[-1])
        return (*index[:-1], slice(first + start, first + stop))

    if sharding is None:
        indices = {"": (slice(None),) * len(shape)}
    else:
        spec = tuple(sharding.spec)
        spec = (spec + (None,) * (skip + len(shape) - len(spec)))[skip:]
        spec = PartitionSpec(*(spec[::-1] if source.transpose else spec))
        placed = NamedSharding(sharding.mesh, spec)
        here = placed.addressable_devices_indices_map(shape)
        indices = {str(index): index for index in here.values()}
    parts = read_parts(entry, [in_file(index) for index in indices.values()], list(room.values()))
    room.update(zip(indices, parts, strict=True))
    if sharding is None:
        return jax.device_put(room[""])
    return jax.make_array_from_callback(shape, placed, lambda index: room[str(index)])


def _find(folder: Path, config: DecoderConfig) -> dict[str, Entry]:
    """Every tensor of the folder by its canonical name. Reads headers only."""
    if (folder / WEIGHTS).is_file():
        entries = read_header(folder / WEIGHTS)
    elif (folder / INDEX).is_file():
        entries = _read_index(folder)
    else:
        old = [name for name in ("pytorch_model.bin", "tf_model.h5") if (folder / name).exists()]
        found = f"; {old[0]} is not read" if old else ""
        raise FileNotFoundError(
            f"{folder}: no weights ({WEIGHTS} or {INDEX}){found}; save the model with transformers'"
            " save_pretrained"
        )
    return {canonical(config.architecture, name): entry for name, entry in entries.items()}


def _read_index(folder: Path) -> dict[str, Entry]:
    try:
        weight_map = dict(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / INDEX}: not a JSON object with a weight_map") from None
    headers = {}
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: no such file, though {INDEX} names it")
        headers[name] = read_header(folder / name)
    for tensor, name in weight_map.items():
        if tensor not in headers[name]:
            raise ValueError(f"{folder / name}: tensor {tensor} is missing, though {INDEX} has it")
    return {tensor: headers[name][tensor] for tensor, name in weight_map.items()}


def _check(folder: Path, config: DecoderConfig, entries: dict[str, Entry]) -> None:
    """Raises ValueError unless the tensors are exactly what the config asks for."""
    wanted = {source.name: shape for _, _, source, shape in sources(config)}
    tied = config.tie_embeddings and HEAD_NAME in entries
    for name, entry in entries.items():
        known = name in wanted or BUFFERS.fullmatch(name) or (tied and name == HEAD_NAME)
        if not known:
            raise ValueError(
                f"{entry.file}: tensor {name} is not part of this {config.architecture} model"
            )
    for name, shape in wanted.items():
        if name not in entries:
            raise ValueError(f"{folder}: tensor {name} is missing; its config.json asks for it")
        entry = entries[name]
        if entry.dtype not in DTYPES:
            raise ValueError(
                f"{entry.file}: tensor {name} has type {entry.dtype} (quantised?), which is not"
                f" supported; only {', '.join(DTYPES)} are"
            )
        if entry.shape != shape:
            raise ValueError(
                f"{entry.file}: tensor {name} has shape {list(entry.shape)}, but its config.json"
                f" makes it {list(shape)}"
            )
    if tied:
        head = entries[HEAD_NAME]
        embedding = entries[NAMES[config.architecture].table["embedding"].name]
        same = head.shape == embedding.shape and head.dtype == embedding.dtype
        if not same or not np.array_equal(read_tensor(head), read_tensor(embedding)):
            raise ValueError(
                f"{head.file}: {HEAD_NAME} differs from the embedding, though config.json has"
                " tie_word_embeddings true"
            )


# ---------------------------------------------------------------- writing


def save_hf(
    path: str | Path, config: DecoderConfig, params, lora=None, *, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a folder that `transformers` opens: config.json and safetensors, adapters merged in.

    Each file appears under its name only when it is whole, and config.json, without which nobody
    opens the folder, comes last. Other files of the folder (a tokenizer's) are left alone. Tensors
    are fetched from their shards one at a time; with many hosts all call this, the first writes.
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

    if lora is not None and config.lora is None:
        raise ValueError("save_hf: an adapter is given, but config.lora is None")

    def fetch(leaf: str, i: int | None, transpose: bool) -> np.ndarray:
        x = flat[leaf] if i is None else flat[leaf][i]
        stem = leaf.removesuffix("kernel")
        if stem + "a" in adapters and leaf.endswith("/kernel"):
            x = merge_kernel(x, adapters[stem + "a"][i], adapters[stem + "b"][i], config.lora.scale)
        x = to_host(x)
        return x.T if transpose else x

    parts: dict[str, list] = {}
    for leaf, i, source, shape in sources(config):
        one = partial(fetch, leaf, i, source.transpose)
        parts.setdefault(source.name, []).append((source.part or 0, one, shape, flat[leaf].dtype))

    def whole(pieces) -> np.ndarray:
        ordered = sorted(pieces, key=lambda piece: piece[0])
        arrays = [one() for _, one, _, _ in ordered]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)

    return {
        name: (pieces[0][2], pieces[0][3], partial(whole, pieces)) for name, pieces in parts.items()
    }


def to_host(x) -> np.ndarray:
    """One array, gathered from wherever its shards are; with many hosts all call this."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def _bytes(shape: tuple[int, ...], dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _split(tensors: dict[str, tuple], shard_bytes: int) -> dict[str, list[str]]:
    """File name -> its tensors; each at most `shard_bytes`, unless one tensor alone exceeds it."""
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
