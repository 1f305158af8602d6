"""TensorBoard's event files, as far as scalars need them.

An event file is a sequence of records (length, its check sum, data, its check sum; TFRecord), each
datum an `Event` in protocol buffers. Written here directly, since the packages that write them
import torch where it is installed, and write from threads whose errors nobody can catch.
"""

import os
import socket
import struct
import time
from pathlib import Path

# Field numbers of Event, Summary.Value and SessionLog in tensorboard/compat/proto/*.proto
WALL_TIME, STEP, FILE_VERSION, SUMMARY, SESSION_LOG = 1, 2, 3, 5, 7
VALUE, TAG, SIMPLE_VALUE = 1, 1, 2
STATUS, START = 1, 1


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


TABLE = _crc32c_table()


def masked_crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), rotated and offset as TFRecord stores it."""
    value = 0xFFFFFFFF
    for byte in data:
        value = TABLE[(value ^ byte) & 0xFF] ^ (value >> 8)
    value ^= 0xFFFFFFFF
    return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(field: int, data: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def scalar(tag: str, value: float) -> bytes:
    """A Summary.Value with a simple value, as a field of a Summary."""
    single = _varint(SIMPLE_VALUE << 3 | 5) + struct.pack("<f", value)
    return _bytes(VALUE, _bytes(TAG, tag.encode()) + single)


class EventFile:
    """One event file in `directory`. With `step`, a restart: TensorBoard then hides what older
    files there have after this step."""

    def __init__(self, directory: str | os.PathLike, step: int = 0):
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self._file = open(directory / name, "wb")
        self._write(_bytes(FILE_VERSION, b"brain.Event:2"))
        if step:
            self._write(_int(STEP, step + 1) + _bytes(SESSION_LOG, _int(STATUS, START)))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Writes one event with all these values."""
        summary = b"".join(scalar(tag, value) for tag, value in values.items())
        self._write(_int(STEP, step) + _bytes(SUMMARY, summary))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event: bytes) -> None:
        event = _varint(WALL_TIME << 3 | 1) + struct.pack("<d", time.time()) + event
        length = struct.pack("<Q", len(event))
        self._file.write(length + struct.pack("<I", masked_crc32c(length)))
        self._file.write(event + struct.pack("<I", masked_crc32c(event)))
