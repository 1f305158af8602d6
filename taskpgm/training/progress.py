"""What a person sees of a long stage: a bar on a terminal, a line now and then without one."""

import sys
import time

import jax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Counts steps of `name` up to `total`, with the rate and the time left.

    Use as a context manager; `start` is where a resumed run stands. Without a terminal (a file of a
    cluster's scheduler, say) a line is written after `every` seconds at the earliest. Of many
    processes the first one tells.
    """

    def __init__(self, name: str, total: int, *, start: int = 0, unit: str = "step", every=30.0):
        self.name, self.total, self.start, self.unit, self.every = name, total, start, unit, every
        self._began = self._said = time.monotonic()
        self._bar, self._silent = None, jax.process_index() > 0
        if not self._silent and sys.stderr.isatty():
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
        elif not self._silent and now - self._said >= self.every:
            self._said = now
            left = duration((self.total - done) / max(rate, 1e-9))
            print(
                f"{self.name}: {done} of {self.total}, {rate:.3g} {self.unit}/s, {left} left"
                + (f", {note}" if note else ""),
                file=sys.stderr,
                flush=True,
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
