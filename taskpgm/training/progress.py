"""What a person sees of a long stage: a bar on a terminal, a line now and then without one."""

import sys
import time

import jax
from tqdm import tqdm


class Reporter:
    """Counts steps of `name` up to `total`, with the rate and the time left.

    Use as a context manager; `start` is where a resumed run stands. Without a terminal (a file of a
    cluster's scheduler, say) the first update is a line, then one after `every` seconds at the
    earliest. Of many processes the primary tells.
    """

    def __init__(
        self,
        name: str,
        total: int,
        *,
        start: int = 0,
        unit: str = "step",
        every: float | int = 30.0,
    ):
        self.name, self.total, self.start, self.unit, self.every = name, total, start, unit, every
        self._silent = jax.process_index() > 0
        self._began, self._said = time.monotonic(), -every
        self._bar = None
        if not self._silent and sys.stderr.isatty():
            self._bar = tqdm(
                desc=name, total=total, initial=start, unit=unit, leave=False, dynamic_ncols=True
            )

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: int, note: str = "") -> None:
        """`done` of `total` are finished; `note` is shown beside it (the loss, say)."""
        now = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=done == self.start)
            self._bar.update(done - self._bar.n)
        elif not self._silent and now - self._said >= self.every:
            self._said = now
            parts = [f"{self.name}: {done} of {self.total}", *self._rate(done, now), note]
            print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)

    def _rate(self, done: int, now: float) -> list[str]:
        """Steps a second and the time left, once a step is finished."""
        if done == self.start:
            return []
        rate = (done - self.start) / max(now - self._began, 1e-9)
        return [f"{rate:.3g} {self.unit}/s", f"{duration((self.total - done) / rate)} left"]


def duration(seconds: float | int) -> str:
    """75 -> '1 min 15 s'; the two largest units."""
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    seconds = round(seconds)
    parts = []
    for name, size in units:
        count, seconds = divmod(seconds, size)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])
