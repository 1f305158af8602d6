"""The safetensors format, read and written tensor by tensor with plain file calls.

The library maps whole files into memory, whose pages count as the process's own, and writes only
models it holds whole. Here one tensor at a time is in memory. The format: 8 bytes of little-endian
header length, a JSON header of name -> dtype, shape, data_offsets, then the data.
"""

import contextlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

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
    dtype: str  # a key of DTYPES, or something else that only its name is known of
    shape: tuple[int, ...]
    start: int  # bytes from the beginning of the file
    size: int  # bytes


def read_header(path: Path) -> dict[str, Entry]:
    """Every tensor of one file, from its header alone.

    Raises ValueError, naming the file and the tensor, unless the tensors fill the rest of the file
    one after the other, each as large as its type and shape make it: reading then cannot fail for
    want of bytes, and no weights are taken for another tensor's as well.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if total < 8 or length > total - 8:
            raise ValueError(f"{path}: not a safetensors file, or cut off in its header")
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise ValueError(f"{path}: not a safetensors file (its header is not JSON)") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: not a safetensors file (its header is not a JSON object)")
    header.pop("__metadata__", None)
    end, before = 8 + length, "the header"
    entries = {name: _entry(path, name, item, end) for name, item in header.items()}
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].start, pair[1].size)):
        if entry.start != end:
            how = "overlaps" if entry.start < end else "leaves a gap after"
            raise _damaged(path, f"tensor {name} {how} {before}")
        end, before = end + entry.size, name
        if end > total:
            raise _damaged(path, f"cut off in tensor {name}")
    if end < total:
        raise _damaged(path, f"{total - end} bytes after {before} belong to no tensor")
    return entries


def _entry(path: Path, name: str, item: Any, data: int) -> Entry:
    """A tensor's line of the header, checked by itself; `data` is where the file's data begin."""
    match item:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(first), int(last)]} if (
            0 <= first <= last and all(isinstance(n, int) and n >= 0 for n in shape)
        ):
            pass
        case _:
            raise _damaged(path, f"tensor {name} has no valid dtype, shape and data_offsets")
    size = last - first
    # Of types that are not read, only the name is known.
    if dtype in DTYPES and size != math.prod(shape) * DTYPES[dtype].itemsize:
        raise _damaged(path, f"tensor {name} is {dtype} {shape} in {size} bytes")
    return Entry(path, dtype, tuple(shape), data + first, size)


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path}: {what}; the file is damaged and has to be fetched or made again")


def read_tensor(entry: Entry) -> np.ndarray:
    """One tensor, in the file's own type."""
    dtype = DTYPES[entry.dtype]
    count = entry.size // dtype.itemsize
    return np.fromfile(entry.file, dtype, count, offset=entry.start).reshape(entry.shape)


def read_parts(
    entry: Entry, indices: Sequence[tuple[slice, ...]], room: Sequence[np.ndarray] = ()
) -> list[np.ndarray]:
    """`tensor[index]` for every index, in one pass that never holds the tensor beside its parts.

    room: what an earlier call gave for the same indices and shape, to be overwritten. A part has
    pages of its own, which go back to the system with it: the heap keeps what is freed, a few
    tensors' worth in each thread. And a CPU device takes what begins a page without a copy.
    """
    dtype, (rows, *rest) = DTYPES[entry.dtype], entry.shape
    starts = [index[0].indices(rows)[0] for index in indices]
    parts = list(room)
    if not parts or parts[0].dtype != dtype:
        views = [np.broadcast_to(np.empty((), dtype), entry.shape)[index] for index in indices]
        parts = [_in_pages(view.shape, dtype) for view in views]
    at_a_time = max(1, BLOCK_BYTES * rows // max(entry.size, 1))
    buffer = np.empty((min(at_a_time, rows), *rest), dtype)
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        for first in range(0, rows, at_a_time):
            block = buffer[: rows - first]
            if file.readinto(block.reshape(-1).view(np.uint8)) != block.nbytes:
                raise ValueError(f"{entry.file}: cut off while it was read")
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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file open under a temporary name that becomes `path` only when all of it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            np.ascontiguousarray(tensor(name)).tofile(file)
