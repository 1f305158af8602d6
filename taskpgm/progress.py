"""What a long stage is doing and how far it is: a bar on a terminal, a line now and then without
one, and `doing()` for whoever breaks a long silence."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
from tqdm import tqdm

T = TypeVar("T")

# --- What is being done ---------------------------------------------------------------------------
_works: list["Work"] = []  # the outermost first


class Work:
    """Something that takes a while, inside `with`: `done` of `total` are finished (None: nobody
    counts). `unit` is one of them."""

    def __init__(self, name: str, total: int | None = None, *, start: int = 0, unit: str = "step"):
        self.name, self.total, self.start, self.done, self.unit = name, total, start, start, unit
        self._began = time.monotonic()

    def __enter__(self):
        _works.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _works.remove(self)

    def text(self) -> str:
        """How far it is: "12 of 40 tasks, 1.5 task/s, 18 s left"."""
        if self.total is None:
            return ""
        return ", ".join([f"{self.done} of {self.total} {self.unit}s", *self.rate()])

    def rate(self) -> list[str]:
        """Steps a second and the time left, once a step is finished."""
        if self.total is None or self.done == self.start:
            return []
        rate = (self.done - self.start) / max(time.monotonic() - self._began, 1e-9)
        return [f"{rate:.3g} {self.unit}/s", f"{duration((self.total - self.done) / rate)} left"]


def counted(items: Iterable[T], name: str, total: int, *, unit: str) -> Iterator[T]:
    """The same items; one is finished when the next is asked for."""
    with Work(name, total, unit=unit) as work:
        for item in items:
            yield item
            work.done += 1


def doing(*known: str) -> str:
    """What is being done at this moment, from the whole to its part; "" where nobody has said.

    known: names that the reader has read already.
    """
    parts = []
    for work in list(_works):
        name = "" if work.name in known else work.name
        parts.append(": ".join(filter(None, (name, work.text()))))
    if _compiling:
        parts.append("compiling")
    return "; ".join(filter(None, parts))


# Told at the end of each phase of a compilation: after the first of these XLA has the program,
# until the second.
LOWERED = "/jax/core/compile/jaxpr_to_mlir_module_duration"
COMPILED = "/jax/core/compile/backend_compile_duration"
_compiling = False


def _follow(event: str, duration_secs: float, **kwargs: str | int) -> None:
    global _compiling
    if event in (LOWERED, COMPILED):
        _compiling = event == LOWERED


jax.monitoring.register_event_duration_secs_listener(_follow)

# --- What has been said ---------------------------------------------------------------------------
_said_at = time.monotonic()


def said() -> None:
    """Notes that the user has been told something."""
    global _said_at
    _said_at = time.monotonic()


def silence() -> float:
    """Seconds since the user was last told something; none while a bar is to be seen."""
    barred = any(isinstance(work, Reporter) and work.bar is not None for work in list(_works))
    return 0.0 if barred else time.monotonic() - _said_at


class Reporter(Work):
    """Work that is shown while it goes on, with the rate and the time left.

    `start` is where a resumed run stands. Without a terminal (a file of a cluster's scheduler, say)
    the first update is a line, then one after `every` seconds at the earliest. Of many processes
    the primary tells.
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
        super().__init__(name, total, start=start, unit=unit)
        self.every = every
        self._silent = jax.process_index() > 0
        self._told = -float(every)
        self.bar = None
        if not self._silent and sys.stderr.isatty():
            self.bar = tqdm(
                desc=name, total=total, initial=start, unit=unit, leave=False, dynamic_ncols=True
            )

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        if self.bar is not None:
            self.bar.close()

    def update(self, done: int, note: str = "") -> None:
        """`done` of `total` are finished; `note` is shown beside it (the loss, say)."""
        self.done, now = done, time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=done == self.start)
            self.bar.update(done - self.bar.n)
        elif not self._silent and now - self._told >= self.every:
            self._told = now
            said()
            parts = [f"{self.name}: {done} of {self.total}", *self.rate(), note]
            print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)


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
