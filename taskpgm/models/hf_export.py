"""A decoder as a Hugging Face folder that `transformers` opens, written tensor by tensor."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils

from taskpgm.artefact import open_atomic
from taskpgm.models.config import DecoderConfig
from taskpgm.models.hf_folder import (
    CONFIG,
    GENERATION,
    INDEX,
    WEIGHTS,
    generation_config,
    read_generation_config,
)
from taskpgm.models.hf_names import tensor_names
from taskpgm.models.lora import merge_kernel
from taskpgm.models.safetensors_file import write_file

SHARD_BYTES = 5 * 10**9


def save_hf(
    path: str | Path,
    config: DecoderConfig,
    params,
    lora=None,
    *,
    base: str | Path | None = None,
    trained_ends: Sequence[int] = (),
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a folder that `transformers` opens: config.json, generation_config.json and
    safetensors, adapters merged in.

    base: the folder of the model that was trained; its generation_config.json is carried over, and
    `trained_ends`, the ids that the model was trained to end a text with, are added to those that
    end one there and in `config`. Each file appears under its name only when it is whole, and
    config.json, without which nobody opens the folder, comes last. Other files of the folder (a
    tokenizer's) are left alone. A file holds at most `shard_bytes`. Tensors are fetched from their
    shards one at a time; with many hosts all call this, and the first writes.
    """
    folder = Path(path)
    before = {} if base is None else read_generation_config(Path(base))
    generation = generation_config(
        before,
        bos=config.bos_token_id,
        eos=config.eos_token_id,
        pad=config.pad_token_id,
        trained_ends=trained_ends,
    )
    tensors = _tensors(config, params, lora)
    files = _split(tensors, shard_bytes)
    writer = jax.process_index() == 0
    if writer:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).unlink(missing_ok=True)
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
    _write_json(folder / GENERATION, generation)
    ends = generation.get("eos_token_id")
    dtype = str(jax.tree.leaves(params)[0].dtype)
    _write_json(folder / CONFIG, {**config.to_hf(), "eos_token_id": ends, "dtype": dtype})


def _tensors(config: DecoderConfig, params, lora) -> dict[str, tuple[tuple, Any, Callable]]:
    """File name -> (shape, type, function that fetches it), of the whole model."""
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    adapters: dict[str, Any] = {} if lora is None else flatten_dict(lora, sep="/")

    if lora is not None and config.lora is None:
        raise ValueError("save_hf: an adapter is given, but config.lora is None")
    scale = 0.0 if config.lora is None else config.lora.scale

    def fetch(leaf: str, i: int | None, transpose: bool) -> np.ndarray:
        x = flat[leaf] if i is None else flat[leaf][i]
        stem = leaf.removesuffix("kernel")
        if stem + "a" in adapters and leaf.endswith("/kernel"):
            x = merge_kernel(x, adapters[stem + "a"][i], adapters[stem + "b"][i], scale)
        x = to_host(x)
        return x.T if transpose else x

    parts: dict[str, list] = {}
    for leaf, i, source, shape in tensor_names(config):
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
    with open_atomic(path) as file:
        file.write((json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
