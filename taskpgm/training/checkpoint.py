"""Checkpoints: the one place that knows Orbax (its v1 API).

A checkpoint is a folder that Orbax writes under a temporary name and renames, plus `complete.json`,
written last: the size and CRC-32 of every file, and what the caller wants remembered (`meta`). A
folder without it, or whose files differ from it, is damaged: it is named and never restored.
"""

import contextlib
import errno
import json
import logging as py_logging
import os
import shutil
import threading
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from absl import logging
from jax.sharding import SingleDeviceSharding

from taskpgm.artefact import open_atomic
from taskpgm.multihost import on_primary

Tree = Any
SEAL = "complete.json"


def _worth_saying(record: py_logging.LogRecord) -> bool:
    """Not what Orbax tells of every save, nor the tracebacks of its threads: their errors are
    raised to the caller as well, who says them in one line."""
    routine = record.levelno < py_logging.WARNING or record.exc_info
    return not (routine and f"{os.sep}orbax{os.sep}" in record.pathname)


logging.get_absl_logger().addFilter(_worth_saying)


class Damaged(OSError):
    """A checkpoint that is not what was written: the message names the folder and the file."""


@contextlib.contextmanager
def disk_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns a full disk, in whatever way a library reports it, into an OSError of one line."""
    try:
        yield
    except Exception as error:
        number = getattr(error, "errno", None)
        full = any(words in str(error) for words in ("No space left", "Disk quota exceeded"))
        if not full and number not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"the disk is full: {path} could not be written; free some space and start the same "
            "command again, it goes on from the last checkpoint"
        ) from error


def save_tree(path: str | os.PathLike, tree: Tree, meta: Mapping[str, Any] | None = None) -> None:
    """Writes a pytree of arrays to the folder `path`, replacing what is there once all is written.

    Called by all processes; each writes its own shards. Raises OSError with one line when the disk
    is full.
    """
    path = Path(path).absolute()
    fresh = path.with_name(f".{path.name}.new")
    with disk_errors(path):
        _make_room(fresh)
        ocp.save(fresh, tree, overwrite=True)
        _publish(fresh, path, meta or {})


@on_primary
def _make_room(fresh: Path) -> None:
    for left in fresh.parent.glob(f"{fresh.name}*"):  # by a save that was killed
        shutil.rmtree(left, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)


@on_primary
def _publish(fresh: Path, path: Path, meta: Mapping[str, Any]) -> None:
    _seal(fresh, meta)
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    fresh.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def restore_tree(path: str | os.PathLike, like: Tree) -> Tree:
    """Reads the pytree at `path` onto the shapes, dtypes and shardings of `like` (arrays, or
    jax.ShapeDtypeStruct with .sharding), each device reading its own shards only. The mesh and the
    number of processes may differ from those of the save.

    Raises:
      FileNotFoundError: when there is no checkpoint.
      Damaged: when a file of it is missing, short or altered.
      ValueError: when its arrays do not have the shapes of `like`.
    """
    path = Path(path).absolute()
    on_primary(verify)(path)
    return _load(path, like)


def _load(path: Path, like: Tree) -> Tree:
    try:
        return ocp.load(path, jax.tree.map(abstract, like))
    except (ValueError, KeyError) as error:
        reason = _first_line(error)
        raise ValueError(f"checkpoint {path} does not fit this model: {reason}") from error


def read_meta(path: str | os.PathLike) -> dict[str, Any]:
    """What save_tree was given as `meta`."""
    return _read_seal(Path(path).absolute())["meta"]


def verify(path: str | os.PathLike) -> None:
    """Checks every file of the checkpoint against its seal. Raises as `restore_tree`."""
    path = Path(path).absolute()
    for name, (size, checksum) in _read_seal(path)["files"].items():
        file = path / name
        if not file.is_file():
            raise Damaged(f"checkpoint {path} is damaged: {name} is missing")
        if file.stat().st_size != size:
            raise Damaged(
                f"checkpoint {path} is damaged: {name} has {file.stat().st_size} bytes, not {size}"
            )
        if _crc(file) != checksum:
            raise Damaged(f"checkpoint {path} is damaged: {name} has been altered")


class Manager:
    """The checkpoints of one run: folders named by step under `directory`.

    Saving returns once the arrays are copied from the devices; a thread writes them, seals the
    folder and removes what is no longer to be kept: all but the `keep` newest and the best (the
    least `metric` given to `save`).
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        self.directory = Path(directory).absolute()
        self.keep = keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        if jax.process_index() == 0 and self.directory.is_dir():
            for path in self.directory.glob("*.orbax-checkpoint-tmp*"):  # of a save that was killed
                shutil.rmtree(path, ignore_errors=True)

    def steps(self) -> list[int]:
        """Steps with a folder that looks like a checkpoint, ascending."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdigit())

    def save(
        self,
        step: int,
        tree: Tree,
        *,
        meta: Mapping[str, Any] | None = None,
        metric: float | None = None,
    ) -> None:
        """Begins to save `tree` as of `step`. Raises OSError when the save before this failed."""
        self.wait()
        path = self.path(step)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            response = ocp.save_async(path, tree, overwrite=True)

        def finish():
            try:
                with disk_errors(path):
                    response.result()
                    if jax.process_index() == 0:
                        _seal(path, {"step": step, "metric": metric, **(meta or {})})
                        self._prune()
            except BaseException as error:  # handed to the thread that trains, by wait()
                self._error = error

        self._thread = threading.Thread(target=finish, name=f"checkpoint-{step}")
        self._thread.start()

    def close(self) -> None:
        """Returns when nothing is being written any more, well or not."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def wait(self) -> None:
        """Returns when the last save is on disk; raises what went wrong with it."""
        self.close()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    @on_primary
    def newest(self) -> int | None:
        """The step of the newest checkpoint that is whole, or None. Damaged ones are named in the
        log and removed, so that the run can write them anew."""
        for step in reversed(self.steps()):
            try:
                verify(self.path(step))
            except OSError as error:
                logging.warning("%s; going back to the one before it", error)
                shutil.rmtree(self.path(step), ignore_errors=True)
            else:
                return step
        return None

    def restore(self, step: int, like: Tree) -> tuple[Tree, dict[str, Any]]:
        """(tree, meta) of `step`, which `newest` has checked."""
        return _load(self.path(step), like), read_meta(self.path(step))

    def best(self) -> int | None:
        """The step with the least metric."""
        metrics = {step: self._metric(step) for step in self.steps()}
        metrics = {step: metric for step, metric in metrics.items() if metric is not None}
        return min(metrics, key=lambda step: (metrics[step], -step)) if metrics else None

    def path(self, step: int) -> Path:
        return self.directory / f"{step:08d}"

    def _metric(self, step: int) -> float | None:
        try:
            return read_meta(self.path(step)).get("metric")
        except OSError:
            return None

    def _prune(self) -> None:
        kept = set(self.steps()[-self.keep :]) | {self.best()}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.path(step), ignore_errors=True)


def abstract(x: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array, without its data; without a sharding of its own it
    goes to the first device, and never where the checkpoint's writer happened to have it."""
    sharding = getattr(x, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _crc(file: Path) -> int:
    value = 0
    with open(file, "rb") as handle:
        while block := handle.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _seal(path: Path, meta: Mapping[str, Any]) -> None:
    files = {
        str(file.relative_to(path)): [file.stat().st_size, _crc(file)]
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != SEAL
    }
    with open_atomic(path / SEAL) as file:
        file.write(json.dumps({"meta": dict(meta), "files": files}).encode())


def _read_seal(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        return json.loads((path / SEAL).read_text())
    except FileNotFoundError:
        raise Damaged(f"checkpoint {path} is damaged: it was never finished") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise Damaged(f"checkpoint {path} is damaged: {SEAL} is cut off") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
