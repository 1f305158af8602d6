"""What a person sees of a long stage: a bar on a terminal, a log line now and then without one."""

import sys
import time

from absl import logging
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Counts steps of `name` up to `total`, with the rate and the time left.

    Use as a context manager; `start` is where a resumed run stands. Without a terminal a line is
    logged after `every` seconds at the earliest.
    """

    def __init__(self, name: str, total: int, *, start: int = 0, unit: str = "step", every=30.0):
        self.name, self.total, self.start, self.unit, self.every = name, total, start, unit, every
        self._began = self._said = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(name, total=total, completed=start, rate="", note="")

    def __enter__(self):
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """`done` of `total` are done; `note` is shown beside it (the loss, say)."""
        now = time.monotonic()
        rate = (done - self.start) / max(now - self._began, 1e-9)
        if self._bar is not None:
            self._bar.update(
                self._task, completed=done, rate=f"{rate:.3g} {self.unit}/s", note=note
            )
        elif now - self._said >= self.every:
            self._said = now
            left = (self.total - done) / max(rate, 1e-9)
            logging.info(
                "%s: %d of %d, %.3g %s/s, %s left%s",
                *(self.name, done, self.total, rate, self.unit, duration(left)),
                f", {note}" if note else "",
            )


def duration(seconds: float) -> str:
    """75 -> '1 min 15 s'; the two largest units."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    seconds = round(seconds)
    parts = []
    for name, size in units:
        count, seconds = divmod(seconds, size)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])
