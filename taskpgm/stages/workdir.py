"""Comparing configs, and the older names of `taskpgm.artefact`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskpgm.artefact import MARK as MARK
from taskpgm.artefact import Artefact
from taskpgm.artefact import digest as digest
from taskpgm.artefact import done_key as done_key
from taskpgm.artefact import fingerprint as fingerprint
from taskpgm.artefact import read_json as read_json
from taskpgm.artefact import recovery_hint as way_out  # noqa: F401
from taskpgm.artefact import remove as remove
from taskpgm.artefact import write_bytes as write_bytes
from taskpgm.artefact import write_json as write_json


def is_done(folder: Path, key: str) -> bool:
    return Artefact(folder, key).is_done()


def begin(folder: Path, key: str) -> None:
    Artefact(folder, key).begin()


def reopen(folder: Path) -> None:
    Artefact(folder, "").reopen()


def mark_done(folder: Path, key: str, **facts: Any) -> None:
    Artefact(folder, key).finish(**facts)


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
