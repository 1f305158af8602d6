"""What is done already, and by which config: keys, completion marks, atomic files.

Every artefact of a run is a folder with a *key*: a hash of all that it depends on. The key is
written into `done.json` inside the folder, as the last act of making it. Same key and a mark:
skipped. Anything else is made again, or goes on from its own checkpoints: whatever is damaged in
it, the way out is to remove the mark. A file is written under a temporary name and renamed, so a
half-written one is never taken for a whole one.

Of several processes the first alone reads and writes here, and all go by what it has found.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from taskpgm.training import by_first

# Raised whenever an artefact's meaning changes, so that old workdirs are not mistaken for new ones.
ARTEFACT_VERSION = 1
MARK = "done.json"


def digest(*parts: Any) -> str:
    """A short stable hash of JSON-like values (16 hexadecimal digits)."""
    text = json.dumps([ARTEFACT_VERSION, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, all or nothing."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


@by_first
def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data`, all or nothing: a temporary name in the same folder, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@by_first
def read_json(path: Path) -> Any:
    """Reads a JSON file of the workdir.

    Raises:
      ValueError: the file is missing or damaged; names it and the way out.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: {way_out(path)}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): {way_out(path)}") from error


def way_out(path: Path) -> str:
    """What to do so that a damaged file or folder of the workdir is made again.

    The file alone would not do: its artefact would still be marked complete. Nor need the artefact
    go: what of it is whole (scores, checkpoints) is used again.
    """
    artefact = next((at for at in (path, *path.parents) if (at / MARK).is_file()), None)
    return f"remove {artefact / MARK if artefact else path} and start the same command again"


def is_done(folder: Path, key: str) -> bool:
    """Whether `folder` holds a complete artefact made under `key`."""
    return done_key(folder) == key


@by_first
def done_key(folder: Path) -> str | None:
    """The key a complete artefact was made under; None when there is no complete one."""
    mark = folder / MARK
    return read_json(mark)["key"] if mark.is_file() else None


@by_first
def reopen(folder: Path) -> None:
    """Declares the artefact in `folder` incomplete, and keeps all that is in it."""
    (folder / MARK).unlink(missing_ok=True)


@by_first
def remove(folder: Path) -> None:
    """Deletes a folder of the workdir that is needed no more."""
    shutil.rmtree(folder, ignore_errors=True)


def mark_done(folder: Path, key: str, **facts: Any) -> None:
    """Declares the artefact in `folder` complete; `facts` (seconds, steps) are kept with it."""
    write_json(folder / MARK, {"key": key, **facts})


@by_first
def begin(folder: Path, key: str) -> None:
    """Prepares `folder` to be filled under `key`, keeping what an interrupted run of it left there.

    What was made under another key is removed first: it belongs to inputs that are gone.
    """
    started = folder / "key.json"
    open_still = started.is_file() and not (folder / MARK).exists()
    if open_still and read_json(started)["key"] == key:
        return
    if folder.exists():
        # Renamed before it is removed: a kill in between must not leave half of it under its name.
        doomed = folder.with_name(f".{folder.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        os.replace(folder, doomed)
        shutil.rmtree(doomed)
    folder.mkdir(parents=True)
    write_json(started, {"key": key})


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, lists and tuples being values."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) wherever two configs differ; a missing value is None."""
    a, b = flatten(old), flatten(new)
    return [(k, a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]


def fingerprint(folder: Path, names: Iterable[str]) -> str:
    """Identifies big files without reading them whole: names, sizes, first and last MiB."""
    parts = []
    for name in sorted(names):
        path = folder / name
        with path.open("rb") as file:
            head = file.read(1 << 20)
            file.seek(max(0, path.stat().st_size - (1 << 20)))
            tail = file.read()
        parts.append([name, path.stat().st_size, hashlib.sha256(head + tail).hexdigest()])
    return digest(parts)
