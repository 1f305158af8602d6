"""Stage `proxies`: the runs that rows of `compare` need to choose by. proxies/NAME.

Only for rows that train something of their own (RegMix, DoReMi, Skill-It).
"""

from collections.abc import Iterator

from taskpgm.stages import sweep
from taskpgm.stages.compare import parse
from taskpgm.stages.context import Context
from taskpgm.stages.proxy_runs import MADE, ProxyRuns

__all__ = ["MADE", "SECTIONS", "artefacts", "own_runs"]

SECTIONS = ()  # keys are those of other stages


def artefacts(context: Context) -> Iterator[ProxyRuns]:
    """The runs of each row that has any; two rows may share theirs."""
    found = {}
    for _, row, _ in sweep.mixtures(context):
        runs = own_runs(context, row)
        if runs is not None:
            found.setdefault(runs.folder, runs)
    yield from found.values()


def own_runs(context: Context, name: str) -> ProxyRuns | None:
    """The runs of a row of `compare`; None where it has none."""
    row, arguments = parse(name)
    return row.runs(context, arguments) if row.runs else None
