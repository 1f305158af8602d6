"""What a stage yields: an artefact that can make itself, knows what that costs, and how to tell."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from taskpgm.artefact import Artefact
from taskpgm.stages.context import Context
from taskpgm.stages.estimate import Cost, Estimate


@dataclass(frozen=True)
class StageArtefact(Artefact):
    """An artefact of a stage; `flow.py` decides whether it is made.

    Attributes:
      title: names it among those of its stage; "" where it is alone.
      uses_models: whether all processes make it together, on the run's mesh; else the primary
        makes it, and the others have what it returned.
    """

    context: Context = field(repr=False)
    title: str = ""
    uses_models: ClassVar[bool] = True

    def make(self) -> dict[str, Any]:
        """Fills the folder; returns facts to be kept with its mark."""
        raise NotImplementedError

    def cost(self, estimate: Estimate) -> Cost:
        """What making it would take."""
        raise NotImplementedError

    def found(self) -> str:
        """What is said where there is nothing to make."""
        return "done already"

    def summary(self) -> str:
        """One line of what it holds, once it is made."""
        return "done"


class MadeAnew(StageArtefact):
    """Cheap, and made from what is kept: each run makes it again, so it has no mark."""

    uses_models: ClassVar[bool] = False

    def is_done(self) -> bool:
        return False

    def begin(self) -> None:
        """Nothing: what is there stays until it is replaced."""

    def finish(self, **facts: Any) -> None:
        """Nothing to mark."""
