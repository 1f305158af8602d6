"""Weights of Hugging Face folders into the parameters of a decoder, tensor by tensor.

torch is never imported, and the model is never whole on the host: a tensor is read, placed into its
shards, and written into its layer of the stacked parameter before the next one is read.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding, PartitionSpec

from taskpgm.models.config import DecoderConfig
from taskpgm.models.decoder import logical_axes
from taskpgm.models.hf_folder import find_tensors
from taskpgm.models.hf_names import (
    BUFFERS,
    HEAD_NAME,
    NAMES,
    TensorName,
    canonical,
    flat_shapes,
    tensor_names,
)
from taskpgm.models.safetensors_file import DTYPES, Entry, read_parts, read_tensor
from taskpgm.models.sharding import RULES, shardings_of


def load_hf(path: str | Path, *, dtype: str = "float32", mesh=None, rules=None):
    """(DecoderConfig, params) of a folder with config.json and safetensors, one file or many.

    `dtype` becomes the type of parameters and computation. Every tensor goes straight into its
    shards on `mesh`, by default the mesh in force; without one, to the default device. `rules` can
    only be the one table there is, `models.sharding.RULES`. Peak host memory stays under the
    model's size plus two tensors.

    Raises FileNotFoundError or ValueError, naming file and tensor, before any weight is read, for
    an unsupported model or a folder whose tensors are not exactly those of its config.
    """
    if rules not in (None, RULES):
        raise ValueError("load_hf: rules other than models.sharding.RULES are not supported")
    config, entries = _checked(Path(path))
    config = replace(config, dtype=dtype, param_dtype=dtype)
    names = flatten_dict(logical_axes(config), sep="/")
    shapes = flat_shapes(config)
    shardings = shardings_of({leaf: names[leaf] for leaf in shapes}, shapes, mesh)
    params = {
        leaf: _load_leaf(leaf, like, entries, config, shardings[leaf])
        for leaf, like in shapes.items()
    }
    return config, unflatten_dict(params, sep="/")


def check_hf(path: str | Path) -> DecoderConfig:
    """Raises what `load_hf` would raise, from headers alone: seconds before hours of training."""
    return _checked(Path(path))[0]


def _checked(folder: Path) -> tuple[DecoderConfig, dict[str, Entry]]:
    config = DecoderConfig.from_hf(folder)
    found = find_tensors(folder)
    entries = {canonical(config.architecture, name): entry for name, entry in found.items()}
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
    stack, buffers = jnp.zeros(like.shape, like.dtype, device=sharding), {}
    for i in range(config.num_layers):
        tensor = _place(entries[source.name.format(i=i)], source, sharding, 1, buffers)
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
    entry: Entry, source: TensorName, sharding: NamedSharding | None, skip: int, buffers: dict
) -> jax.Array:
    """The tensor, laid out as in its file, on its devices.

    `sharding` is that of our parameter, which has `skip` more axes in front. `buffers` keeps the
    host's copy of each part for the next tensor of the same shape: a CPU device computes on that
    memory itself, so the result has to be used before the next call.
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
        indices = {str(index): index for index in here.values() if index is not None}
    parts = read_parts(
        entry, [in_file(index) for index in indices.values()], list(buffers.values())
    )
    buffers.update(zip(indices, parts, strict=True))
    if sharding is None:
        return jax.device_put(buffers[""])
    return jax.make_array_from_callback(shape, placed, lambda index: buffers[str(index)])


def _check(folder: Path, config: DecoderConfig, entries: dict[str, Entry]) -> None:
    """Raises ValueError unless the tensors are exactly what the config asks for."""
    wanted = {source.name: shape for _, _, source, shape in tensor_names(config)}
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
