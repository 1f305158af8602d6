"""Metrics of a run: metrics.jsonl, TensorBoard, and W&B where it is asked for.

metrics.jsonl is the record: one JSON object a line, each with its `step`. A run that resumes at
step k first drops every line after k, so that no step stands there twice.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter


class Writer:
    """Writes the metrics of one run into `directory`.

    Args:
      step: the step that the run resumes from; later lines are dropped.
      wandb: arguments of wandb.init (project, name, ...), or None for none.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        step: int = 0,
        wandb: Mapping[str, Any] | None = None,
    ):
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "metrics.jsonl"
        rewind(self.path, step)
        self._file = open(self.path, "a", encoding="utf-8")
        self._board = SummaryWriter(
            str(directory / "tensorboard"), purge_step=step + 1 if step else None, flush_secs=30
        )
        self._wandb = None
        if wandb is not None:
            import wandb as module

            self._wandb = module.init(dir=str(directory), resume="allow", **wandb)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line. Arrays become lists; TensorBoard gets elements as name/0, name/1."""
        row = {"step": step} | {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        flat = dict(_scalars(values))
        for name, value in flat.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(flat, step=step)

    def close(self) -> None:
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that was cut off by a kill is left out."""
    path = Path(path)
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def rewind(path: str | os.PathLike, step: int) -> None:
    """Drops the lines of a metrics.jsonl that are after `step`, and a line that was cut off."""
    path = Path(path)
    if not path.exists():
        return
    rows = [row for row in read(path) if row["step"] <= step]
    fresh = path.with_suffix(".new")
    fresh.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    fresh.replace(path)


def _plain(value: Any) -> Any:
    value = np.asarray(value)
    if value.ndim:
        return [_plain(x) for x in value]
    value = value.item()
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _scalars(values: Mapping[str, Any]):
    for name, value in values.items():
        value = np.asarray(value)
        if value.dtype.kind not in "iufb":
            continue
        if value.ndim == 0:
            yield name, float(value)
        else:
            for i, x in enumerate(value.ravel()):
                yield f"{name}/{i}", float(x)
