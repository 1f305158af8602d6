"""The safetensors format: headers by the library, data tensor by tensor with plain file calls.

The library checks a file (types, sizes, overlaps, gaps, missing bytes). It does not move the data:
even its `pread` backend reads a whole tensor for every slice of it, and its writer needs the whole
model in memory. Here one tensor at a time is. The format: 8 bytes of little-endian header length, a
JSON header of name -> dtype, shape, data_offsets, then the data.
"""

import json
import mmap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from taskpgm.artefact import open_atomic

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": jnp.dtype("bfloat16"),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
BLOCK_BYTES = 1 << 20  # read at a time where a tensor is taken apart


class Entry(NamedTuple):
    """Where a tensor lies."""

    file: Path
    dtype: str  # the header's code; only those of DTYPES can be read
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    size: int  # bytes


def read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of one file, from its header alone.

    Raises ValueError, naming the file, unless the tensors fill the rest of the file one after the
    other, each as large as its type and shape make it: reading then cannot fail for want of bytes,
    and no bytes belong to two tensors.
    """
    try:
        with safe_open(path, "numpy", backend="pread"):
            pass
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise ValueError(
            f"{path}: not a whole safetensors file ({reason}); fetch it or make it again"
        ) from None
    # The library does not tell where a tensor begins; what it has checked needs no second check.
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _entry(path, item, 8 + length) for name, item in header.items()}


def _entry(path: Path, item: Mapping[str, Any], data: int) -> Entry:
    """One tensor of a checked header; the file's data begin at byte `data`."""
    first, last = item["data_offsets"]
    return Entry(path, item["dtype"], tuple(item["shape"]), data + first, last - first)


def read_tensor(entry: Entry) -> np.ndarray:
    """One tensor, in the file's own type."""
    dtype = DTYPES[entry.dtype]
    count = entry.size // dtype.itemsize
    return np.fromfile(entry.file, dtype, count, offset=entry.start).reshape(entry.shape)


def read_parts(
    entry: Entry, indices: Sequence[tuple[slice, ...]], buffers: Sequence[np.ndarray] = ()
) -> list[np.ndarray]:
    """`tensor[index]` for every index, in one pass that never holds the tensor beside its parts.

    buffers: the parts of an earlier call with the same indices and shape, to be overwritten. Each
    part is an anonymous memory map: a CPU device uses page-aligned memory without a copy, and the
    pages return to the system when the part is dropped (the heap would keep them).
    """
    dtype, (rows, *rest) = DTYPES[entry.dtype], entry.shape
    starts = [index[0].indices(rows)[0] for index in indices]
    parts = list(buffers)
    if not parts or parts[0].dtype != dtype:
        views = [np.broadcast_to(np.empty((), dtype), entry.shape)[index] for index in indices]
        parts = [_in_pages(view.shape, dtype) for view in views]
    at_a_time = max(1, BLOCK_BYTES * rows // max(entry.size, 1))
    buffer = np.empty((min(at_a_time, rows), *rest), dtype)
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        for first in range(0, rows, at_a_time):
            block = buffer[: rows - first]
            if file.readinto(block.reshape(-1).view(np.uint8).data) != block.nbytes:
                raise ValueError(f"{entry.file}: cut off while it was being read")
            for index, start, part in zip(indices, starts, parts, strict=True):
                low, high = max(start, first), min(start + len(part), first + len(block))
                if low < high:
                    here = (slice(low - first, high - first), *index[1:])
                    part[low - start : high - start] = block[here]
    return parts


def _in_pages(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape, dtype=np.int64))
    pages = mmap.mmap(-1, max(size * dtype.itemsize, 1))
    return np.frombuffer(pages, dtype, size).reshape(shape)


def write_file(
    path: Path,
    shapes: Mapping[str, tuple[tuple[int, ...], Any]],
    tensor: Callable[[str], np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Write `tensor(name)` for every name of `shapes` (name -> shape, dtype), one after another."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, (shape, dtype) in shapes.items():
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        item = {"dtype": CODES[np.dtype(dtype)], "shape": list(shape)}
        header[name] = {**item, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open_atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            np.ascontiguousarray(tensor(name)).tofile(file)
