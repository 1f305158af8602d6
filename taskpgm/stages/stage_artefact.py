"""What a stage yields: an artefact that can make itself, and describe its cost and its content."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from taskpgm.artefact import Artefact, done_facts
from taskpgm.stages.context import Context
from taskpgm.stages.estimate import Cost, Estimate


@dataclass(frozen=True)
class Unit:
    """A piece of work that one process can make while others make others."""

    name: str
    is_done: Callable[[], bool]
    make: Callable[[], None]


@dataclass(frozen=True)
class StageArtefact(Artefact):
    """An artefact of a stage; `flow.py` decides whether it is made.

    Attributes:
      title: its name within the stage; "" if it is the only one.
      uses_models: whether all processes make it together, on the run's mesh; otherwise only the
        primary makes it, and the other processes get what it returned.
    """

    context: Context = field(repr=False)
    title: str = ""
    uses_models: ClassVar[bool] = True

    def make_parts(self, share: Callable[[Sequence[Unit]], None]) -> None:
        """Hands what several processes can make to `share`, which returns once all of it is made.
        `make` then finds it. A part is named by its title."""

    def planned_parts(self) -> Sequence[tuple[str, bool]]:
        """(title, whether it is done) of the parts, as far as that is known without a model."""
        return ()

    def make(self) -> dict[str, Any]:
        """Fills the folder; returns facts to be stored in its done.json."""
        raise NotImplementedError

    def cost(self, estimate: Estimate) -> Cost:
        """What it would take to make it."""
        raise NotImplementedError

    def seconds(self) -> float:
        """What making it took here, once it is made; of one that was interrupted, the last part."""
        return float(done_facts(self.folder).get("seconds", 0.0))

    def found(self) -> str:
        """The line to print if there is nothing to make."""
        return "done already"

    def summary(self) -> str:
        """The line to print once it is made."""
        return "done"


class MadeAnew(StageArtefact):
    """An artefact that is cheap, so that each run makes it again; it has no done.json."""

    uses_models: ClassVar[bool] = False

    def is_done(self) -> bool:
        return False

    def begin(self) -> None:
        """Nothing: the old one stays until it is replaced."""

    def finish(self, **facts: Any) -> None:
        """Nothing: it has no done.json."""
