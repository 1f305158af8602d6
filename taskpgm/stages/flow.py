"""The flow: the stages in their order, and the only loop that skips or makes an artefact.

A stage is a module with `artefacts(context)`, which yields its artefacts in the workdir, SECTIONS
(the sections of the config that they depend on) and MADE (the folder or file that it writes). To
add one, write the module and name it in STAGES.
"""

import contextlib
import difflib
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import jax
from ml_collections import ConfigDict

from taskpgm import progress
from taskpgm.artefact import remove_leftovers
from taskpgm.multihost import (
    end_if_asked,
    initialize_distributed,
    on_primary,
)
from taskpgm.owner import owned
from taskpgm.stages import (
    adapters,
    affinity,
    base,
    embeddings,
    evaluation,
    export,
    mixture,
    proxies,
    report,
    runs,
    tasks,
)
from taskpgm.stages.checks import check_inputs
from taskpgm.stages.context import Context, say, weights_only
from taskpgm.stages.plan import print_plan
from taskpgm.stages.stage_artefact import StageArtefact, Unit
from taskpgm.stages.sweep import keep_first_settings
from taskpgm.stages.units import check_no_workers, list_units, share_stages, working
from taskpgm.stages.validation import check_values, conflicts_of, validate
from taskpgm.stages.workdir import begin_workdir, check_hosts, check_resumable, write_config
from taskpgm.training import quiet_orbax

STAGES: dict[str, ModuleType] = {
    "tasks": tasks,
    "base": base,
    "embeddings": embeddings,
    "adapters": adapters,
    "affinity": affinity,
    "proxies": proxies,
    "mixture": mixture,
    "export": export,
    "runs": runs,
    "evaluation": evaluation,
    "report": report,
}
# With a matrix from a file nothing is trained: the weights and the report follow from it.
MATRIX_STAGES = ("affinity", "mixture", "report")

QUIET = 8.0  # seconds without a line after which a stage tells what it is doing


def run(
    config: ConfigDict,
    workdir: str,
    *,
    last: str | None = None,
    dry_run: bool = False,
    device: str | None = None,
    command: Sequence[str] = (),
    shared: bool = False,
    only: str | None = None,
    units: bool = False,
    distributed: tuple[str | None, int | None, int | None] = (None, None, None),
) -> None:
    """Runs the stages of `config` in `workdir`, up to `last`; finished artefacts are kept.

    Args:
      dry_run: only print the plan and its cost; `device` names another machine to plan for.
      shared: make what other processes that share the workdir do not make, until all is there.
      only: make only this unit, and share the workdir too. units: only list them.

    Raises:
      ValueError: no such stage, a bad value, or the workdir was made by another config.
      OSError: the workdir is not writable.
    """
    (check_values if dry_run else validate)(config)
    stages = stages_until(config, last)
    if device and not dry_run:
        raise ValueError(f"--device={device} plans for another machine: add --dry_run")
    quiet_orbax()
    context = Context(config, Path(workdir), command, planning=dry_run)
    initialize_distributed(*distributed)
    end_if_asked()
    if dry_run:
        known = conflicts_of(config)
        try:
            check_resumable(context.folder, config, STAGES)
        except ValueError as error:
            known.append(error)
        print_plan(context, stages, device, known)
        return
    with heartbeat("start"):
        check_inputs(context)
    if units:
        on_primary(list_units)(context, stages)
        return
    check_resumable(context.folder, config, STAGES)
    start = time.monotonic()
    begin_workdir(context.folder)
    shared = shared or only is not None
    with working(context.folder) if shared else owned(context.folder):
        if not shared:
            on_primary(check_no_workers)(context.folder)
            remove_leftovers(context.folder)
        keep_first_settings(context.folder, config)
        write_config(context.folder, config)
        check_hosts(context)
        # Unless the user has chosen one, as by JAX_COMPILATION_CACHE_DIR.
        if not jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
            cache = (context.folder / ".cache").absolute()
            jax.config.update("jax_compilation_cache_dir", str(cache))
        if shared:
            share_stages(context, stages, make, partial(make_part, context), only)
        else:
            for name, stage in stages.items():
                for each in stage.artefacts(context):
                    make(name, each)
        end_if_asked()
    say("done", f"in {time.monotonic() - start:.0f} s, everything is in {context.folder}")


def make(stage: str, each: StageArtefact) -> None:
    """Makes an artefact unless it is done, and prints which of the two it was."""
    end_if_asked()
    title = f"{each.title}: " if each.title else ""
    if each.is_done():
        say(stage, f"{title}{each.found()}")
        return
    start = time.monotonic()
    with heartbeat(stage, each.title):
        each.begin()
        if each.uses_models:
            with jax.set_mesh(each.context.mesh):
                facts = each.make()
        else:
            facts = on_primary(each.make)()
        each.finish(**{"seconds": round(time.monotonic() - start, 1)} | facts)
    say(stage, f"{title}{each.summary()}")


def make_part(context: Context, stage: str, part: Unit) -> None:
    """Makes a part of an artefact, which several processes make together."""
    start = time.monotonic()
    with heartbeat(stage, part.name), jax.set_mesh(context.mesh):
        part.make()
    say(stage, f"{part.name}: made in {time.monotonic() - start:.0f} s")


@contextlib.contextmanager
def heartbeat(stage: str, title: str = "") -> Iterator[None]:
    """Inside, prints a line after QUIET seconds without one, then after twice as long each time.

    The line tells what is being done and how far it is, as `progress` knows it."""
    done, start = threading.Event(), time.monotonic()

    def beat() -> None:
        quiet = QUIET
        while not done.wait(1.0):
            if progress.silence() > quiet:
                now = progress.doing(stage, title) or "at work"
                so_long = progress.duration(time.monotonic() - start)
                say(stage, f"{title + ': ' if title else ''}{now} (for {so_long})")
                quiet = min(2 * quiet, 300.0)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# --- Before anything is spent --------------------------------------------------------------------
def stages_until(config: ConfigDict, last: str | None) -> dict[str, ModuleType]:
    """The stages that a config needs, in order, up to `last`.

    Raises:
      ValueError: there is no such stage.
    """
    names = list(STAGES)
    if config.affinity.matrix:
        names = [name for name in names if name != "adapters"]
    if weights_only(config):
        names = [name for name in names if name in MATRIX_STAGES]
    if last is not None and last not in names:
        near = difflib.get_close_matches(last, names, 1)
        hint = f", did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"--stage={last}: the stages are {', '.join(names)}{hint}")
    return {name: STAGES[name] for name in (names[: names.index(last) + 1] if last else names)}
