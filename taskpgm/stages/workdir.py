"""What is refused about a workdir: one that cannot be written, another config's, another host's;
and what config.json keeps of it."""

import errno
import fnmatch
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from ml_collections import ConfigDict

from taskpgm import artefact
from taskpgm.multihost import assert_same_on_all_hosts, on_primary, several
from taskpgm.stages.benchmarked import DECIDED_BY, HARNESS
from taskpgm.stages.context import Context
from taskpgm.stages.measured import MADE
from taskpgm.stages.schema import flatten

# What may differ at any time: where and how fast things run, how often they are saved or logged,
# and which further mixtures are compared. None of it changes an artefact that exists.
FREE = (
    "mesh.*",
    "log_every",
    "ray.*",
    "compare",
    "export",
    "mixture.*",  # mixtures and models of other settings have names of their own
    "train.*",
    "sweep.*",
    "tasks.targets",
    "*.checkpoint_every",
    "*.memory",
    "adapters.group",
    "adapters.peft",
    "affinity.batch_size",
    "embeddings.batch_size",
    "evaluation.batch_size",
    "evaluation.harness",  # a benchmark that is added costs none that is there
    "evaluation.harness_batch_size",
    "affinity.bootstrap",
)
VERSION = "artefacts"  # beside the config in config.json: the version of what is in the workdir


@on_primary
def begin_workdir(folder: Path) -> None:
    """Makes the workdir, and sees that it can be written.

    Raises:
      OSError: it cannot, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable.tmp"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise not_writable(folder, error.strerror or str(error)) from error


def not_writable(folder: Path, reason: str) -> OSError:
    """What is raised where a workdir cannot be."""
    return OSError(
        f"--workdir={folder}: nothing can be written there ({reason}); choose another folder"
    )


def check_writable(context: Context) -> None:
    """`begin_workdir` of a plan, which makes nothing.

    Raises:
      OSError: it could not be made, or be written.
    """
    folder = context.folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise not_writable(context.folder, f"{there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise not_writable(context.folder, "permission denied")


def check_hosts(context: Context) -> None:
    """Makes sure that all processes have been told and have found the same.

    Raises:
      ValueError: says what differs, or that the workdir is not shared.
    """
    if not several():
        return
    config = context.config
    assert_same_on_all_hosts(artefact.digest(config.to_dict()), "the config")
    if not (context.folder / "config.json").is_file():
        raise ValueError(
            f"process {jax.process_index()} does not see {context.folder / 'config.json'}, which "
            "process 0 has written: the workdir has to be a folder that all hosts share"
        )
    if not context.weights_only:
        on_primary(lambda: context.judged_key)()  # downloads them once, if hosts share a cache
        assert_same_on_all_hosts(context.judged_key, "the tasks")
        assert_same_on_all_hosts(context.base.key + context.proxy.key, "the base model")


@on_primary
def check_resumable(folder: Path, config: ConfigDict, stages: Mapping[str, ModuleType]) -> None:
    """Lets a workdir go on only if what it holds was made by this config and this version.

    A difference that concerns only stages not begun yet is no obstacle: `--stage=affinity` first
    and another `mixture.ratio` later is fine. Benchmarks may come and go; how they are asked may
    change only while there are none.

    Raises:
      ValueError: names the first differing keys and the ways out.
    """
    if not (folder / "config.json").is_file():
        if folder.is_dir() and any((folder / stage.MADE).exists() for stage in stages.values()):
            raise ValueError(f"{folder} has no config.json: choose an empty --workdir")
        return
    try:
        old = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        # Not made again like other files: nothing else tells what the workdir was made by.
        raise ValueError(
            f"{folder / 'config.json'} is damaged ({error}): put a copy of it back, or choose "
            "another --workdir"
        ) from error
    version = old.pop(VERSION, None)
    made = {name: stage for name, stage in stages.items() if (folder / stage.MADE).exists()}
    if made and version != artefact.VERSION:
        raise ValueError(
            f"{folder} was made by another version of taskpgm, whose artefacts differ: choose "
            "another --workdir"
        )
    blocking = []
    for key, before, now in differing_keys(old, config.to_dict()):
        asked = key.removeprefix("evaluation.") in DECIDED_BY  # how benchmarks are asked
        if any(fnmatch.fnmatch(key, pattern) for pattern in FREE) or (
            asked and not config.evaluation.harness
        ):
            continue
        stage = next((s for s in made.values() if key.split(".")[0] in s.SECTIONS), None)
        part = Path(MADE, HARNESS) if asked else stage and stage.MADE
        if part and (folder / part).exists():
            blocking.append((part, f"{key} was {before!r} and is now {now!r}"))
    if blocking:
        part = blocking[0][0]
        said = "; ".join(text for _, text in blocking[:3]) + ("; ..." if len(blocking) > 3 else "")
        raise ValueError(
            f"{folder} was made by another config: {said}. Choose another --workdir, or remove "
            f"{folder / part} to make it, and what follows from it, again"
        )


@on_primary
def write_config(folder: Path, config: ConfigDict) -> None:
    """Writes config.json. Where the config names no benchmark, it keeps saying how those that are
    there were asked."""
    path = folder / "config.json"
    told: dict[str, Any] = {VERSION: artefact.VERSION} | config.to_dict()
    if not config.evaluation.harness:
        before = artefact.read_json(path, {}).get("evaluation", {})
        told["evaluation"] |= {key: before[key] for key in DECIDED_BY if key in before}
    artefact.write_json(path, told)


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) wherever two configs differ; a missing value is None."""
    a, b = flatten(old), flatten(new)
    return [(k, a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]
