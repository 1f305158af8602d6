"""Stage `export`: the examples of every mixture, for other trainers. mixture/NAME.jsonl, and a
folder for each format that `config.export` names."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from taskpgm.artefact import digest, open_atomic, write_bytes, write_json
from taskpgm.stages import mixture
from taskpgm.stages.compare import folder_name
from taskpgm.stages.context import Context
from taskpgm.stages.estimate import Cost, Estimate
from taskpgm.stages.export_formats import FORMATS, lines
from taskpgm.stages.run_models import drawn
from taskpgm.stages.stage_artefact import StageArtefact
from taskpgm.tasks import Example

SECTIONS = ("export",)
MADE = "mixture/export"


def artefacts(context: Context) -> Iterator[StageArtefact]:
    """All exported files as one artefact; none if no format is asked for."""
    formats = list(context.config.export)
    if formats:
        (mixtures,) = mixture.artefacts(context)
        key = digest(mixtures.key, context.tasks_key, context.config.seed, formats)
        yield Exports(context.folder / MADE, key, context)


@dataclass(frozen=True)
class Exports(StageArtefact):
    """The examples that the models of the first seed are trained on, shuffled."""

    uses_models: ClassVar[bool] = False

    def make(self) -> dict[str, Any]:
        context = self.context
        weights = mixture.read_weights(context.folder)
        shared: dict[Path, dict[str, Any]] = {}
        for name, record in weights.mixtures.items():
            rows = shuffled(context, name, record.counts or [])
            chat = any(example.messages is not None for _, _, example in rows)
            for form in context.config.export:
                path = self.path(form, folder_name(name))
                with open_atomic(path) as file:
                    file.writelines(lines(form, rows, chat))
                beside = FORMATS[form].config(path.absolute(), chat, folder_name(name))
                for file_name, content in beside.items():
                    shared.setdefault(path.parent / file_name, {}).update(content)
        for path, content in shared.items():
            if path.suffix == ".json":
                write_json(path, content)
            else:
                write_bytes(path, yaml.safe_dump(content, sort_keys=False).encode())
        return {"formats": list(context.config.export)}

    def path(self, form: str, name: str) -> Path:
        """The file with the rows of a mixture; files of `jsonl` are next to weights.json."""
        folder = self.folder.parent if form == "jsonl" else self.folder / form
        return folder / f"{name}.jsonl"

    def cost(self, estimate: Estimate) -> Cost:
        return Cost(self.summary())

    def summary(self) -> str:
        return f"{', '.join(self.context.config.export)} in {self.folder.parent}"


def shuffled(context: Context, name: str, counts: list[int]) -> list[tuple[str, str, Example]]:
    """(task, family, example) of all examples of a mixture, counts [n], in random order."""
    rows = [
        (task.name, task.family, example)
        for task, count in zip(context.tasks, counts, strict=True)
        for example in drawn(context, task, count, seed=0)
    ]
    order = np.random.default_rng(context.seed_of("export", name)).permutation(len(rows))
    return [rows[i] for i in order]
