"""What the rows of `compare` rest on beside the affinities, and what choosing a mixture costs.

What several rows share is charged to each of them in full, as if it were the only one: that is what
a user pays who takes this row alone. Each part stands once in `Choosing.parts`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from taskpgm.records import Choosing, ChoosingCost, RowCost
from taskpgm.stages import adapters, sweep
from taskpgm.stages.affinity import affinities
from taskpgm.stages.affinity_files import read_likelihoods
from taskpgm.stages.compare import parse
from taskpgm.stages.context import Context
from taskpgm.stages.devices import machine
from taskpgm.stages.embeddings import embeddings, read_embeddings
from taskpgm.stages.estimate import Estimate, amount
from taskpgm.stages.mixture_inputs import EMBEDDINGS, LIKELIHOODS, RUNS, Inputs
from taskpgm.stages.proxies import own_runs
from taskpgm.stages.rows import ADAPTERS, SCORED, SCORES
from taskpgm.stages.stage_artefact import StageArtefact

FILE = "choosing.json"
# What a row can rest on, by the names of `MixtureRow.uses`.
PARTS: dict[str, Callable[[Context], StageArtefact]] = {
    ADAPTERS: lambda context: next(iter(adapters.artefacts(context))),
    SCORES: affinities,
    EMBEDDINGS: embeddings,
}


def evidence(context: Context) -> dict[str, Callable[[], Mapping[str, np.ndarray]]]:
    """The `Inputs.evidence` of a workdir."""
    found: dict[str, Callable[[], Mapping[str, np.ndarray]]] = {
        LIKELIHOODS: partial(read_likelihoods, context.folder)
    }
    if not context.config.affinity.matrix:
        found[EMBEDDINGS] = partial(read_embeddings, context.folder, context.names)
        for name, row, config in sweep.mixtures(context):
            if runs := own_runs(context, row, config):
                found[name] = runs.read
    return found


def with_runs(inputs: Inputs, name: str) -> Inputs:
    """The inputs of the mixture of that name, with what its own runs have found."""
    own = {RUNS: inputs.evidence[name]} if name in inputs.evidence else {}
    return replace(inputs, evidence={**inputs.evidence, **own})


def parts_of(context: Context, name: str, config: Any) -> dict[str, StageArtefact]:
    """By name the parts that a row of `compare` needs under a config of the sweep."""
    row, _ = parse(name)
    parts = {part: PARTS[part](context) for part in row.uses}
    runs = own_runs(context, name, config)
    return {**parts, runs.title: runs} if runs else parts


def keys(context: Context) -> list[str]:
    """Of all that mixtures are made from beside the affinities."""
    if context.config.affinity.matrix:
        return []
    parts = {
        part: made.key
        for _, row, config in sweep.mixtures(context)
        for part, made in parts_of(context, row, config).items()
    }
    return [key for part, key in parts.items() if part not in SCORED]


# --- Costs ---------------------------------------------------------------------------------------
def planned(context: Context, estimate: Estimate) -> Choosing:
    """The estimated cost of choosing, for `--dry_run`; without seconds."""
    return counted(context, estimate, None)


def measured(context: Context, solving: Mapping[str, float]) -> Choosing:
    """What choosing has cost, with seconds on this machine.

    solving: by mixture, the seconds from what it rests on to its weights.
    """
    return counted(context, Estimate(context, machine(None)), solving)


def counted(context: Context, estimate: Estimate, solving: Mapping[str, float] | None) -> Choosing:
    """The costs of all parts, each once, and of every row with all parts that it needs."""
    rows: dict[str, RowCost] = {}
    parts: dict[str, ChoosingCost] = {}
    for name, row_name, config in sweep.mixtures(context):
        own = None if solving is None else solving[name]
        if context.config.affinity.matrix:
            given = bool(parse(row_name)[0].uses)
            rows[name] = RowCost([], own, None if given else summed([], own))
            continue
        made = parts_of(context, row_name, config)
        for part, artefact in made.items():
            if part not in parts:
                cost = artefact.cost(estimate)
                seconds = None if solving is None else artefact.seconds()
                parts[part] = ChoosingCost(
                    cost.trained, cost.scored, (cost.flops or 0.0) + cost.other_flops, seconds
                )
        rows[name] = RowCost(list(made), own, summed([parts[part] for part in made], own))
    return Choosing(rows, parts)


def summed(parts: Sequence[ChoosingCost], solving: float | None) -> ChoosingCost:
    """The cost of all parts and of solving together."""
    return ChoosingCost(
        sum(part.trained for part in parts),
        sum(part.scored for part in parts),
        float(sum(part.flops for part in parts)),
        None if solving is None else solving + sum(part.seconds or 0.0 for part in parts),
    )


def table(choosing: Choosing) -> list[str]:
    """Lines of text: each row, then what is shared."""
    used = [part for row in choosing.rows.values() for part in row.parts]
    lines = [("cost of choosing", "trained", "scored", "FLOPs", "seconds", "rests on")]
    for name, row in choosing.rows.items():
        rests = ", ".join(row.parts) if row.total else "a given matrix"
        lines.append((name, *cells(row.total), rests))
    for name, part in choosing.parts.items():
        if used.count(name) > 1:
            lines.append((f"shared: {name}", *cells(part), f"{used.count(name)} rows"))
    widths = [max(len(line[i]) for line in lines) for i in range(6)]
    return [
        "  ".join(
            cell.ljust(width) if i in (0, 5) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def cells(cost: ChoosingCost | None) -> tuple[str, str, str, str]:
    """Tokens trained on, tokens scored, FLOPs, seconds."""
    if cost is None:
        return "", "", "", ""
    seconds = "" if cost.seconds is None else f"{cost.seconds:,.1f}"
    return f"{cost.trained:,}", f"{cost.scored:,}", amount(cost.flops), seconds
