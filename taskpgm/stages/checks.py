"""Checks before any expensive work: another config's workdir, hosts that differ, bad inputs."""

import errno
import fnmatch
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from ml_collections import ConfigDict

from taskpgm import artefact, models
from taskpgm.affinity import choose_kernel
from taskpgm.evaluation import check_harness
from taskpgm.multihost import assert_same_on_all_hosts, on_primary, several
from taskpgm.stages import sweep
from taskpgm.stages.context import Context
from taskpgm.stages.mixture import check_wishes
from taskpgm.stages.pretrained import Source
from taskpgm.stages.schema import flatten
from taskpgm.tasks import check_vocabulary, encode
from taskpgm.training import check_board

# Keys that may change at any time: where and how fast things run, how often they are saved or
# logged, which mixtures are compared and on which targets they are judged. None of them changes an
# artefact that exists.
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
    "evaluation.harness_batch_size",
    "affinity.bootstrap",
)
VERSION = "artefacts"  # key of config.json next to those of the config: the version of the formats


@on_primary
def check_inputs(context: Context) -> None:
    """Refuses what a stage would find out late: bad mixtures or budgets, a missing harness.

    Raises:
      ValueError: names the key.
    """
    for problem in problems_of_start(context):
        raise problem
    if context.config.base.path and not context.weights_only:
        context.say_answers_cut_off()


def problems_of_start(context: Context) -> Iterator[Exception]:
    """The errors that `check_inputs` raises."""
    matrix = context.weights_only
    try:
        sweep.check(context.config, None if matrix else context.sizes, context.folder)
        check_wishes(context)
        if context.config.evaluation.harness and not matrix:
            section = context.config.evaluation
            check_harness(list(section.harness), section.harness_path)
        check_board(context.config.train.log)
        if not matrix:
            with jax.set_mesh(context.mesh):
                choose_kernel(context.config.affinity.kernel)
    except (ValueError, OSError, ImportError) as error:
        yield error


@on_primary
def begin_workdir(folder: Path) -> None:
    """Makes the workdir, and checks that it is writable.

    Raises:
      OSError: it is not, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable.tmp"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = error.strerror or error
        raise OSError(
            f"--workdir={folder}: nothing can be written there ({reason}); choose another folder"
        ) from error


def check_hosts(context: Context) -> None:
    """Checks that all processes have the same config and have found the same tasks and models.

    Raises:
      ValueError: names what differs, or says that the workdir is not shared.
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
    """Refuses a workdir whose artefacts were made by another config or another version.

    Keys of stages that have not begun may differ: to run `--stage=affinity` first and to change
    `mixture.ratio` afterwards is fine.

    Raises:
      ValueError: names the first keys that differ, and what to do.
    """
    if not (folder / "config.json").is_file():
        if folder.is_dir() and any((folder / stage.MADE).exists() for stage in stages.values()):
            raise ValueError(f"{folder} has no config.json: choose an empty --workdir")
        return
    try:
        old = dict(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        # Not written again like other files: nothing else says which config made the workdir.
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
        if any(fnmatch.fnmatch(key, pattern) for pattern in FREE):
            continue
        stage = next((s for s in made.values() if key.split(".")[0] in s.SECTIONS), None)
        if stage:
            blocking.append((stage, f"{key} was {before!r} and is now {now!r}"))
    if blocking:
        stage = blocking[0][0]
        said = "; ".join(text for _, text in blocking[:3]) + ("; ..." if len(blocking) > 3 else "")
        raise ValueError(
            f"{folder} was made by another config: {said}. Choose another --workdir, or remove "
            f"{folder / stage.MADE} to make it, and what follows from it, again"
        )


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) wherever two configs differ; a missing value is None."""
    a, b = flatten(old), flatten(new)
    return [(k, a.get(k), b.get(k)) for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k)]


def check_models(context: Context) -> None:
    """Refuses a named base or proxy that the tasks do not fit.

    Raises:
      ValueError: names the key; a row is longer than the model's positions, the tokenizer cannot
        encode the examples, or it writes a token that the model has no embedding for.
    """
    config = context.config
    if context.weights_only:
        return
    if config.base.path:
        check_model(context, context.base, f"base.path={config.base.path}")
    if config.proxy.path:
        check_model(context, context.proxy, f"proxy.path={config.proxy.path}")


def check_model(context: Context, source: Source, where: str) -> None:
    """Does `check_models` for one model, which `where` names."""
    decoder = models.DecoderConfig.from_hf(source.path)
    length = context.config.tasks.length
    if length > decoder.max_position:
        raise ValueError(
            f"tasks.length={length}: the model of {where} has {decoder.max_position} positions; set"
            f" --config.tasks.length={decoder.max_position} or less"
        )
    tokenizer = context.tokenizer(source)
    larger = len(tokenizer) > decoder.vocab_size
    for task in context.judged:
        # If no id can be too large, one example shows whether there are an EOS and a template.
        some = (*task.train, *task.heldout, *task.test)
        examples = some if larger else some[:1]
        try:
            ids = encode(tokenizer, examples, length).ids
        except ValueError as error:
            raise ValueError(f"{where}: task {task.name}: {error}") from error
        check_vocabulary(tokenizer, ids, decoder.vocab_size, f"{where}: task {task.name}")
