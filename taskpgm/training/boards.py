"""Boards that show a run's metrics while it trains: optional, metrics.jsonl is the record."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Protocol, runtime_checkable

# Name of a board -> (the module it needs, the extra of this package that brings it)
BOARDS = {"tensorboard": ("tensorboardX", "tensorboard"), "wandb": ("wandb", "wandb")}


@runtime_checkable
class Board(Protocol):
    """Takes the numbers of a step."""

    def write(self, step: int, scalars: dict[str, float]) -> None: ...

    def close(self) -> None: ...


def check_board(name: str) -> None:
    """Whether `open_board` can open it.

    Raises:
      ValueError: an unknown board, or one whose package is not installed.
    """
    if name and name not in BOARDS:
        raise ValueError(f"train.log={name!r} is none of {', '.join(BOARDS)}, or empty for none")
    if name and importlib.util.find_spec(BOARDS[name][0]) is None:
        raise ValueError(
            f"train.log={name} needs the package {BOARDS[name][0]}: "
            f"pip install 'taskpgm[{BOARDS[name][1]}]'"
        )


def open_board(name: str, directory: Path, run: str, step: int) -> Board | None:
    """The board of a run in `directory` that stands at `step`; None for the name "".

    Raises:
      ValueError: as `check_board`.
    """
    check_board(name)
    if name == "tensorboard":
        return TensorBoard(directory / "tensorboard", step)
    return WandB(directory, run) if name else None


class TensorBoard:
    """Event files by tensorboardX (which imports torch where that is installed)."""

    def __init__(self, directory: Path, step: int):
        from tensorboardX import SummaryWriter

        # Hides what an interrupted run wrote after the checkpoint that this one goes on from.
        self._writer = SummaryWriter(str(directory), purge_step=step + 1 if step else None)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A Weights & Biases run, configured by its own environment variables (WANDB_PROJECT, ...)."""

    def __init__(self, directory: Path, run: str):
        import wandb  # pyright: ignore[reportMissingImports]

        self._run = wandb.init(
            dir=str(directory), name=run, id=_wandb_id(directory), resume="allow"
        )

    def write(self, step: int, scalars: dict[str, float]) -> None:
        self._run.log(scalars, step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb_id(directory: Path) -> str:
    """The same for every process that goes on with this run."""
    return hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:16]
