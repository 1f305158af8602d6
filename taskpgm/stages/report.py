"""Stage `report`: the page with the results, in report/, and a table on the terminal."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from taskpgm import report
from taskpgm.stages.context import Context
from taskpgm.stages.estimate import Cost, Estimate
from taskpgm.stages.stage_artefact import MadeAnew, StageArtefact

SECTIONS = ()
MADE = "report"


def artefacts(context: Context) -> Iterator[StageArtefact]:
    """The page."""
    yield Page(context.folder / MADE, "", context)


@dataclass(frozen=True)
class Page(MadeAnew):
    """index.html and its figures, written again by each run: the same artefacts give the same
    bytes."""

    def make(self) -> dict[str, Any]:
        report.write_page(self.context.folder, command=self.context.command)
        print(f"\n{report.results_table(self.context.folder)}\n", flush=True)
        return {}

    def cost(self, estimate: Estimate) -> Cost:
        return Cost(self.summary())

    def summary(self) -> str:
        return str(self.folder / "index.html")
