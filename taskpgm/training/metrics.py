"""Metrics of a run: metrics.jsonl, and a board where it is asked for.

metrics.jsonl is the record: one JSON object a line, each with its `step`. A run that resumes at
step k first drops every line after k, so that no step stands there twice.
"""

import contextlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from taskpgm.artefact import open_atomic
from taskpgm.training.boards import open_board
from taskpgm.training.flops import peak_flops


class Writer:
    """Writes the metrics of one run into `directory`, on the primary process only.

    Args:
      step: the step that the run resumes from; later lines are dropped.
      board: where the numbers are shown too, for `boards.open_board`; the run is `name` there.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        step: int = 0,
        board: str = "",
        name: str = "",
    ):
        directory = Path(directory)
        self.path = directory / "metrics.jsonl"
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        directory.mkdir(parents=True, exist_ok=True)
        rewind(self.path, step)
        self._file = open(self.path, "a", encoding="utf-8")
        self._board = open_board(board, directory, name, step)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line. Arrays become lists; a board gets their elements as name/0, name/1."""
        if not self._writes:
            return
        row = {"step": step} | {name: _plain(value) for name, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            self._board.write(step, dict(_scalars(values)))

    def close(self) -> None:
        if not self._writes:
            return
        self._file.close()
        if self._board is not None:
            self._board.close()


class GroupWriter:
    """Writes the metrics of a group into the folders of its members, each its own numbers. What is
    one number of all, as their speed, all of them get.

    members: folder by name; the other arguments are those of `Writer`.
    """

    def __init__(self, members: Mapping[str, Path], *, step: int = 0, board: str = ""):
        self._writers = [
            Writer(folder, step=step, board=board, name=name) for name, folder in members.items()
        ]

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for i, writer in enumerate(self._writers):
            own = {name: x[i] if np.ndim(x) else x for name, x in values.items()}
            writer.write(step, own)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


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
    with open_atomic(path) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


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


class StepLog:
    """The numbers of each step on their way from the devices to a `Writer`.

    A line every `every` steps: loss, the mean per scored token since the line before; grad_norm and
    lr of the step itself; tokens, the scored ones since the line before; tokens_per_second, of all
    positions computed, padding too; data_wait, the share of the time spent waiting for batches;
    mfu = flops_per_token(share scored) * tokens_per_second / peak of the devices. With a group, [g]
    numbers.

    The host reads a step's numbers two steps later, when they have been computed, so it never
    holds the devices up. `partial` are the sums since the last line: kept in a checkpoint, they
    make the first line after a resume equal to that of an uninterrupted run.
    """

    def __init__(
        self,
        name: str,
        writer: Writer | GroupWriter,
        every: int,
        flops_per_token: Callable[[float], float] | float | None = None,
        partial: Mapping[str, Any] | None = None,
        members: Sequence[str] = (),
    ):
        self.name, self.writer, self.every, self.members = name, writer, every, members
        self.note = ""  # for a progress bar
        self.finished = 0  # steps whose numbers the devices have given
        self._peak = peak_flops() if flops_per_token else None
        self._flops = flops_per_token
        self._pending = deque()
        self._start(None)
        if partial:
            self._nll, self._scored = (np.array(partial[key]) for key in ("nll", "scored"))
            self._positions = partial["positions"]

    def _start(self, clock):
        """A new line's sums: since the line before, and since `clock`, when speed is counted."""
        self._nll, self._scored, self._positions = np.float64(0.0), np.float64(0.0), 0
        self._clock, self._timed, self._waited = clock, 0, 0.0

    @property
    def partial(self) -> dict[str, Any]:
        sums = {"nll": self._nll, "scored": self._scored, "positions": self._positions}
        return {name: np.asarray(value).tolist() for name, value in sums.items()}

    @contextlib.contextmanager
    def waiting(self):
        """Counts the time inside as waiting for data."""
        began = time.monotonic()
        yield
        self._waited += time.monotonic() - began

    def add(self, step: int, values: Mapping[str, Any], positions: int) -> None:
        """The step's metrics, as the step returned them, and how many positions it computed."""
        for value in values.values():
            value.copy_to_host_async()
        self._pending.append((step, values, positions))

    def collect(self, leave: int) -> None:
        """Reads all steps but the `leave` newest, and writes the lines that are due.

        Raises ValueError where a loss is NaN or infinite.
        """
        while len(self._pending) > leave:
            step, values, positions = self._pending.popleft()
            values = {key: np.asarray(value, np.float64) for key, value in values.items()}
            self._check(step, values["loss"])
            self.finished += 1
            self._nll = self._nll + values["loss"] * values["tokens"]
            self._scored = self._scored + values["tokens"]
            self._positions += positions
            if self._clock is None:  # the first step compiled: it says nothing about speed
                self._clock, self._waited = time.monotonic(), 0.0
            else:
                self._timed += positions
            if (step + 1) % self.every == 0:
                self._write(step + 1, values)

    def _check(self, step, loss):
        if np.all(np.isfinite(loss)):
            return
        kind = "NaN" if np.any(np.isnan(loss)) else "infinite"
        task, first = "", int(np.argmin(np.isfinite(loss)))
        if loss.ndim:
            member = self.members[first] if self.members else f"task {first}"
            task = f", {member} of the group"
        raise ValueError(
            f"the loss is {kind} at step {step} of run {self.name}{task}; lower the learning rate, "
            "clip the gradient, or look at that step's data"
        )

    def _write(self, done, last):
        loss = self._nll / np.maximum(self._scored, 1.0)
        row = {"loss": loss, "grad_norm": last["grad_norm"], "lr": last["lr"]}
        row["tokens"] = self._scored
        now = time.monotonic()
        if self._timed:
            seconds = max(now - self._clock, 1e-9)
            row["tokens_per_second"] = rate = self._timed / seconds
            row["data_wait"] = self._waited / seconds
            if self._peak and self._flops:
                share = float(np.sum(self._scored)) / max(self._positions, 1)
                flops = self._flops(share) if callable(self._flops) else self._flops
                row["mfu"] = flops * rate / self._peak
        self.writer.write(done, row)
        self.note = f"loss {np.mean(loss):.4f}"
        self._start(now)
