"""Units: what one process makes of a run while others make the rest, each under a lease.

A unit is an artefact (a model to train, its measures), or a part of one (a group of single-task
models, the scores of a task). Its name is `STAGE:TITLE`. A process that takes a unit holds its
lease: a file in leases/ that says who it is and is touched every few seconds. The lease of a killed
worker ends (see `taskpgm.owner`); another takes the unit and continues from its checkpoints.
"""

import contextlib
import difflib
import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType

from taskpgm.multihost import end_if_asked
from taskpgm.owner import FILE, InUse, living, owned
from taskpgm.stages.compare import folder_name
from taskpgm.stages.context import Context, say
from taskpgm.stages.stage_artefact import MadeAnew, StageArtefact, Unit

LEASES, WORKERS = "leases", "workers"
FAILED = "has failed"
WAIT = 1.0  # seconds until leases that others hold are looked at again


class OnlyOneMade(Exception):
    """The only unit that was asked for is made."""


@dataclass(frozen=True)
class Leases:
    """The leases of a workdir.

    Attributes:
      only: the one unit that this process is to make; None: all that it can get.
      seen: names of the units that were shared.
    """

    folder: Path
    only: str | None = None
    seen: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def lease(self, unit: str) -> Iterator[bool]:
        """Yields whether this process has got the unit for itself."""
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(owned(self.folder / LEASES, lease_file(unit)))
                mine = True
            except InUse:
                mine = False
            yield mine

    def holder(self, unit: str) -> str | None:
        """Which process is making a unit at present, as `process 12 on node7`."""
        found = living(self.folder / LEASES / lease_file(unit))
        return f"process {found['pid']} on {found['host']}" if found else None

    def share(self, units: Sequence[Unit]) -> None:
        """Makes what nobody else makes, until all units are done.

        Raises:
          OnlyOneMade: the only one that is to be made was among them, and is made.
          ValueError: it is being made by another.
        """
        self.seen.extend(unit.name for unit in units)
        left = [unit for unit in units if self.only in (None, unit.name)]
        told = False
        while left:
            before = len(left)
            for unit in list(left):
                end_if_asked()
                if unit.is_done():
                    left.remove(unit)
                    continue
                with self.lease(unit.name) as mine:
                    if mine:
                        if not unit.is_done():
                            make_or_name(unit)
                        left.remove(unit)
                    elif self.only:
                        other = self.holder(unit.name) or "another process"
                        raise ValueError(f"--only={unit.name}: {other} is making it")
            if len(left) == before:
                if not told:
                    names = ", ".join(unit.name for unit in left[:3])
                    say("units", f"waiting for {len(left)} that others are making: {names}")
                    told = True
                time.sleep(WAIT)
        if self.only and any(unit.name == self.only for unit in units):
            raise OnlyOneMade


def make_or_name(unit: Unit) -> None:
    """Makes a unit; where that fails, says which it was."""
    try:
        unit.make()
    except Exception:
        say("units", f"{unit.name} {FAILED}")
        raise


def lease_file(unit: str) -> str:
    return f"{folder_name(unit)}.json"


# --- Workers --------------------------------------------------------------------------------------
@contextlib.contextmanager
def working(folder: Path) -> Iterator[None]:
    """Inside, this process is one of the workdir's workers, which share it.

    Raises:
      ValueError: a launcher has the workdir to itself.
    """
    name = f"{socket.gethostname()}-{os.getpid()}.json"
    with owned(folder / WORKERS, name):
        owner = living(folder / FILE)
        if owner:
            raise ValueError(
                f"the workdir {folder} is in use by process {owner['pid']} on {owner['host']}, "
                "which shares it with nobody: start that with --shared too"
            )
        yield


def check_no_workers(folder: Path) -> None:
    """Refuses a launcher that wants the workdir to itself while workers share it.

    Raises:
      ValueError: names one of them.
    """
    for path in sorted((folder / WORKERS).glob("*.json")):
        worker = living(path)
        if worker:
            raise ValueError(
                f"the workdir {folder} is shared by workers, process {worker['pid']} on "
                f"{worker['host']} among them: add --shared, or wait for them"
            )


# --- All units of a run ---------------------------------------------------------------------------
def unit_name(stage: str, title: str) -> str:
    return f"{stage}:{title}" if title else stage


def waves(artefacts: Sequence[StageArtefact]) -> list[list[StageArtefact]]:
    """Artefacts of a stage that can be made at the same time: those of one kind. Each wave needs
    the ones before it."""
    return [list(wave) for _, wave in itertools.groupby(artefacts, key=type)]


def share_stages(
    context: Context,
    stages: Mapping[str, ModuleType],
    make: Callable[[str, StageArtefact], None],
    make_part: Callable[[str, Unit], None],
    only: str | None = None,
) -> None:
    """Makes what other processes do not make, stage after stage, or only the unit `only`.

    Args:
      make, make_part: make an artefact, or a part of one, of the stage of that name.

    Raises:
      ValueError: there is no such unit, another process is making it, or what it needs is missing.
    """
    leases = Leases(context.folder, only)
    wanted = only.split(":")[0] if only else None
    with contextlib.suppress(OnlyOneMade):
        for stage, module in stages.items():
            if wanted and stage != wanted:
                if wanted in stages and list(stages).index(stage) < list(stages).index(wanted):
                    check_done(stage, module, context, only)
                continue
            for wave in waves(list(module.artefacts(context))):
                units = []
                for each in wave:
                    whole = unit_name(stage, each.title)
                    if only != whole and not each.is_done():
                        each.make_parts(partial(share_parts, leases, stage, make_part))
                    units.append(Unit(whole, each.is_done, partial(make, stage, each)))
                leases.share(units)
        if only:
            near = difflib.get_close_matches(only, leases.seen or list(stages), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"--only={only}: no such unit; --units lists them{hint}")


def share_parts(
    leases: Leases, stage: str, make_part: Callable[[str, Unit], None], parts: Sequence[Unit]
) -> None:
    """Makes the parts of one artefact of a stage, shared among workers."""
    leases.share(
        [
            Unit(unit_name(stage, part.name), part.is_done, partial(make_part, stage, part))
            for part in parts
        ]
    )


def check_done(stage: str, module: ModuleType, context: Context, only: str | None) -> None:
    """Refuses a unit that needs what is not there.

    Raises:
      ValueError: names the first artefact of an earlier stage that is not done.
    """
    for each in module.artefacts(context):
        if not isinstance(each, MadeAnew) and not each.is_done():
            raise ValueError(f"--only={only}: {unit_name(stage, each.title)} has to be made first")


def list_units(context: Context, stages: Mapping[str, ModuleType]) -> None:
    """Prints every unit and its state: done, to do, or who is making it."""
    leases, lines = Leases(context.folder), []
    for stage, module in stages.items():
        for each in module.artefacts(context):
            done = not isinstance(each, MadeAnew) and each.is_done()
            for title, part_done in (*each.planned_parts(), (each.title, done)):
                name = unit_name(stage, title)
                state = "done" if done or part_done else leases.holder(name) or "to do"
                lines.append((name, state))
    width = max(len(name) for name, _ in lines)
    for name, state in lines:
        print(f"{name.ljust(width)}  {state}")
