"""The flow: which stages there are, in which order, and whether a workdir may be continued."""

import difflib
import errno
import fnmatch
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from ml_collections import ConfigDict

from taskpgm.multihost import assert_same_on_all_hosts, initialize_distributed, on_primary
from taskpgm.stages import adapters, measure, plan, prepare, relate, runs
from taskpgm.stages import workdir as wd
from taskpgm.stages.context import Context, say
from taskpgm.stages.defaults import default_config


@dataclass(frozen=True)
class Stage:
    """A step of the flow. Each skips what is done already, and says so."""

    name: str
    run: Callable[[Context], None]
    sections: tuple[str, ...]  # of the config, that decide what the stage makes
    made: str  # the folder or file of the workdir that it fills


STAGES = (
    Stage("tasks", prepare.tasks_stage, ("seed", "tasks"), "tasks.json"),
    Stage("base", prepare.base_stage, ("base", "embedded"), "base"),
    Stage("adapters", adapters.adapters_stage, ("proxy", "adapters"), "adapters"),
    Stage("affinity", relate.affinity_stage, ("affinity",), "affinity"),
    Stage("mixture", relate.mixture_stage, ("mixture",), "mixture"),
    Stage("runs", runs.runs_stage, ("train",), "runs"),
    Stage("evaluation", measure.evaluation_stage, ("evaluation",), "evaluation"),
    Stage("report", measure.report_stage, (), "report"),
)

# With a matrix from a file there is nothing to train: weights and page follow from it.
MATRIX_STAGES = ("affinity", "mixture", "report")

# What may differ at any time: where and how fast things run, how often they are saved or logged,
# and which further mixtures are compared. None of it changes an artefact that exists.
FREE = (
    "mesh.*",
    "log_every",
    "compare",
    "train.seeds",
    "*.checkpoint_every",
    "*.keep",
    "*.memory",
    "adapters.group",
    "affinity.batch_size",
    "evaluation.batch_size",
    "affinity.bootstrap",
)


def stages_of(config: ConfigDict) -> list[Stage]:
    """The stages that a config asks for, in order."""
    return [s for s in STAGES if not config.affinity.matrix or s.name in MATRIX_STAGES]


def run(
    config: ConfigDict,
    workdir: str,
    *,
    last: str | None = None,
    dry_run: bool = False,
    command: Sequence[str] = (),
    distributed: tuple[str | None, int | None, int | None] = (None, None, None),
) -> None:
    """Runs the stages of `config` in `workdir`, up to `last`, resuming whatever is there.

    Raises:
      ValueError: no such stage, or the workdir was made by another config.
      OSError: the workdir cannot be written.
    """
    stages = stages_of(config)
    names = [stage.name for stage in stages]
    if last is not None and last not in names:
        near = difflib.get_close_matches(last, names, 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"--stage={last}: the stages are {', '.join(names)}{hint}")
    stages = stages[: names.index(last) + 1] if last else stages

    folder = Path(workdir)
    context = Context(config, folder, command)
    initialize_distributed(*distributed)
    refuse_other_config(folder, config)
    if dry_run:
        plan.print_plan(context, [stage.name for stage in stages])
        return
    begin_workdir(folder, config)
    if jax.process_count() > 1:
        refuse_other_hosts(context)
    if (
        not jax.config.jax_compilation_cache_dir
    ):  # JAX_COMPILATION_CACHE_DIR is somebody's own choice
        jax.config.update("jax_compilation_cache_dir", str((folder / ".cache").absolute()))
    start = time.monotonic()
    for stage in stages:
        stage.run(context)
    say("done", f"in {time.monotonic() - start:.0f} s, everything is in {folder}")


def begin_workdir(folder: Path, config: ConfigDict) -> None:
    """Writes config.json, the first file of a run: here a workdir shows that it can be written.

    Raises:
      OSError: it cannot, or the disk is full.
    """
    try:
        wd.write_json(folder / "config.json", config.to_dict())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = error.strerror or error
        raise OSError(
            f"--workdir={folder}: nothing can be written there ({reason}); choose another folder"
        ) from error


def checked(config: ConfigDict) -> ConfigDict:
    """A recipe's config, once it is sure that it has the keys of the schema, no more and no fewer.

    Raises:
      ValueError: a key is unknown or missing; names the nearest.
    """
    known, given = wd.flatten(default_config().to_dict()), wd.flatten(config.to_dict())
    for key in given.keys() - known.keys():
        raise ValueError(f"config: {unknown_key(key)}")
    for key in known.keys() - given.keys():
        raise ValueError(f"config: {key} is missing; begin with taskpgm.stages.default_config()")
    return config


def misspelt(argv: Sequence[str]) -> str:
    """What to say of the `--config.a.b=value` in argv whose key does not exist."""
    known = wd.flatten(default_config().to_dict())
    for argument in argv:
        key = argument.lstrip("-").split("=")[0].removeprefix("config.")
        if argument.lstrip("-").startswith("config.") and key not in known:
            return f"{argument}: {unknown_key(key)}"
    return "a --config.KEY=VALUE names a key that the config has not"


def unknown_key(key: str) -> str:
    """ "no such key", and which one was meant: one of that last name, or else one spelt like it."""
    known = wd.flatten(default_config().to_dict())
    namesakes = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    near = difflib.get_close_matches(key, namesakes or known, 1, 0.0 if namesakes else 0.6)
    return f"no such key {key!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def refuse_other_hosts(context: Context) -> None:
    """Makes sure that all processes have been told and have found the same.

    Raises:
      ValueError: says what differs, or that the workdir is not shared.
    """
    config = context.config
    assert_same_on_all_hosts(wd.digest(config.to_dict()), "the config")
    if not (context.folder / "config.json").is_file():
        raise ValueError(
            f"process {jax.process_index()} does not see {context.folder / 'config.json'}, which "
            "process 0 has written: the workdir has to be a folder that all hosts share"
        )
    if not config.affinity.matrix:
        on_primary(lambda: context.tasks_key)()  # and downloads them, for all who share that
        assert_same_on_all_hosts(context.tasks_key, "the tasks")
        assert_same_on_all_hosts(context.base.key + context.proxy.key, "the base model")


@on_primary
def refuse_other_config(folder: Path, config: ConfigDict) -> None:
    """Lets a workdir go on only if what it holds was made by this config.

    A difference that concerns only stages not begun yet is no obstacle: `--stage=affinity` first
    and another `mixture.ratio` later is fine.

    Raises:
      ValueError: names the first differing keys and the ways out.
    """
    if not (folder / "config.json").is_file():
        if folder.is_dir() and any(folder.iterdir()):
            if not any((folder / stage.made).exists() for stage in STAGES):
                return
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
    blocking = []
    for key, before, now in wd.differing_keys(old, config.to_dict()):
        if any(fnmatch.fnmatch(key, pattern) for pattern in FREE):
            continue
        stage = next((s for s in STAGES if key.split(".")[0] in s.sections), None)
        if stage and (folder / stage.made).exists():
            blocking.append((stage, f"{key} was {before!r} and is now {now!r}"))
    if blocking:
        stage = blocking[0][0]
        said = "; ".join(text for _, text in blocking[:3]) + ("; ..." if len(blocking) > 3 else "")
        raise ValueError(
            f"{folder} was made by another config: {said}. Choose another --workdir, or remove "
            f"{folder / stage.made} to make it, and what follows from it, again"
        )
