"""The plan of a run, for `--dry_run`: what every stage would do and cost, and what would stop it.

It refuses nothing that can be planned. What would stop the run is said after the table, with the
key that mends it; where the named inputs themselves are wrong, the plan ends with that error.
"""

import shutil
from collections.abc import Mapping, Sequence
from types import ModuleType

from taskpgm.multihost import on_primary
from taskpgm.stages import choosing
from taskpgm.stages.checks import problems_of_plan
from taskpgm.stages.context import Context
from taskpgm.stages.devices import MFU, machine
from taskpgm.stages.estimate import Cost, Estimate, amount, hours, size

HEAD = ("stage", "state", "FLOPs", "time", "disk", "memory/device", "work")
PLANNED = [(False, Cost(""))]  # of a stage of which nothing is known


@on_primary
def print_plan(
    context: Context,
    stages: Mapping[str, ModuleType],
    device: str | None,
    known: Sequence[Exception] = (),
) -> None:
    """Prints the plan.

    known: what is wrong with the config and with the workdir.

    Raises:
      ValueError: no such device, or tasks that cannot be read.
      Exception: after the plan, the first of what is wrong with the inputs.
    """
    estimate = Estimate(context, machine(device))
    context.tasks_key  # noqa: B018 (without tasks there is nothing to plan)
    said, refused, notes = problems_of_plan(context, estimate)
    said = [*map(one_line, known), *said]
    lines, total, written = [], 0.0, 0.0
    for name, stage in stages.items():
        try:
            costs = [(each.is_done(), each.cost(estimate)) for each in stage.artefacts(context)]
        except (ValueError, OSError) as error:
            lines.append((name, "?", "", "", "", "", "cannot be planned"))
            said.append(f"{name}: {one_line(error)}")
            continue
        if not costs:
            continue
        todo = [cost for done, cost in costs if not done]
        total += sum(cost.seconds(estimate.machine) or 0 for cost in todo)
        written += sum(cost.disk or 0 for cost in todo)
        said += [f"{name}: {cost.problem}" for cost in todo if cost.problem]
        lines.append(plan_line(name, costs, estimate))
    table = [HEAD, *lines]
    widths = [max(len(line[i]) for line in table) for i in range(len(HEAD))]
    print(f"plan for {context.folder} on {estimate.machine.name}\n")
    for line in table:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    at = next(p for p in (context.folder, *context.folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(at).free
    timed = estimate.machine.seconds(0.0) is not None
    print(
        f"\nto do: {f'{hours(total)} at {MFU:.0%} MFU; ' if timed else ''}"
        f"{size(written)} on disk, {size(free)} free"
    )
    if "mixture" in stages and not context.weights_only and not refused:
        try:
            print("", *choosing.table(choosing.planned(context, estimate)), sep="\n")
        except ValueError as error:  # a row that is none
            said.append(one_line(error))
    if written > free:
        said.append(f"the disk has {size(free)}: choose another --workdir or lower train.keep")
    for problem in dict.fromkeys([*said, *map(one_line, refused)]):
        print(f"does not fit: {problem}")
    for note in notes:
        print(f"note: {note}")
    if refused:
        raise refused[0]


def plan_line(name: str, costs: Sequence[tuple[bool, Cost]], estimate: Estimate) -> tuple[str, ...]:
    """One line of the plan, of all artefacts of a stage."""
    # Beside what is computed, a summary costs nothing and is always made anew.
    costs = [(done, cost) for done, cost in costs if cost.flops is not None] or list(costs)
    done, count = sum(done for done, _ in costs), len(costs)
    parts = [cost.done for _, cost in costs if cost.done]
    if parts and not done:
        done, count = map(sum, zip(*parts, strict=True))
    state = "done" if done == count else f"{done} of {count} done" if done else "to do"
    flops = [cost.flops + cost.other_flops for _, cost in costs if cost.flops is not None]
    disk = [cost.disk for _, cost in costs if cost.disk is not None]
    memory = [cost.memory for _, cost in costs if cost.memory is not None]
    seconds = [cost.seconds(estimate.machine) for _, cost in costs]
    known = [x for x in seconds if x is not None]
    kinds = dict.fromkeys(cost.work for _, cost in costs)
    works = [f"{sum(c.work == work for _, c in costs)} x {work}" for work in kinds]
    return (
        name,
        state,
        amount(sum(flops) if flops else None),
        hours(sum(known) if known else None),
        size(sum(disk) if disk else None),
        size(max(memory, default=None)),
        "; ".join(kinds if parts or count == 1 else works),
    )


def one_line(error: Exception) -> str:
    """An error's text, its white space as single spaces."""
    return " ".join(str(error).split()) or type(error).__name__
