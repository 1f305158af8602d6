"""Stage `proxies`: the runs that rows of `compare` need to choose by. proxies/NAME.

Only for rows that train something of their own (RegMix, DoReMi, Skill-It).
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from taskpgm.stages import sweep
from taskpgm.stages.compare import folder_name, parse
from taskpgm.stages.context import Context
from taskpgm.stages.proxy_runs import MADE, ProxyRuns, folder_of

__all__ = ["MADE", "SECTIONS", "artefacts", "own_runs"]

SECTIONS = ()  # keys are those of other stages


def artefacts(context: Context) -> Iterator[ProxyRuns]:
    """The runs of each row that has any; two rows may share theirs."""
    found = {}
    for _, row, config in sweep.mixtures(context):
        runs = own_runs(context, row, config)
        if runs is not None:
            found.setdefault(runs.folder, runs)
    yield from found.values()


def under(context: Context, config: Any) -> Context:
    """The run under a config with other sections `mixture` and `train`, and the same tasks."""
    context.proxy  # noqa: B018 (known to both, and read once)
    context.judged_key  # noqa: B018
    other = copy.copy(context)
    other.config = config
    return other


def own_runs(context: Context, name: str, config: Any) -> ProxyRuns | None:
    """The runs of a row of `compare` under a config of the sweep; None where it has none. They are
    named by what differs from the workdir's first settings, as models are."""
    row, arguments = parse(name)
    if not row.runs:
        return None
    runs = row.runs(under(context, config), arguments)
    first = sweep.first_settings(context.folder, context.config)
    new = {key: value for key, value in runs.settings.items() if value != first.get(key, value)}
    title = runs.title + sweep.suffix(new)
    return replace(runs, title=title, folder=folder_of(context, folder_name(title)))
