"""Checkpoints: the one place that knows Orbax (its v1 API).

Orbax writes a checkpoint under a temporary name and renames it, so one that was never finished is
not there. It notices files that are missing, cut off or not in its format, but not a changed byte
in an array's data: so each array's sum of bits, modulo 2^32, is kept in the checkpoint's metadata
and compared after a restore. That costs one pass over arrays on their devices and reads no file.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Shaped, UInt32

from taskpgm.multihost import on_primary

T = TypeVar("T")  # a pytree of arrays


class Damaged(OSError):
    """A checkpoint that is not what was written: the message names its folder."""


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


def save_tree(path: str | os.PathLike, tree: Any) -> None:
    """Writes a pytree of arrays to the folder `path`, replacing what is there.

    Called by all processes; each writes its own shards. Raises OSError with one line when the disk
    is full.
    """
    path = Path(path).absolute()
    with disk_errors(path):
        ocp.save(str(path), tree, overwrite=True, custom_metadata=_metadata(tree))


def restore_tree(path: str | os.PathLike, like: T) -> T:
    """Reads the pytree at `path` onto the shapes, dtypes and shardings of `like` (arrays, or
    jax.ShapeDtypeStruct with .sharding), each device reading its own shards only. The mesh and the
    number of processes may differ from those of the save.

    Raises:
      FileNotFoundError: when there is no checkpoint.
      Damaged: when it cannot be read, or an array is not what was saved.
      ValueError: when its arrays do not have the shapes of `like`.
    """
    return _restore(Path(path).absolute(), like)[0]


class Checkpoints:
    """The checkpoints of one run, folders named by step under `directory`; the `keep` newest stay.

    Saving returns once the arrays are copied from the devices; Orbax writes them meanwhile.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep={keep}: at least one checkpoint has to be kept")
        self.directory = Path(directory).absolute()
        self._orbax = ocp.training.Checkpointer(
            str(self.directory),
            # By default a save would be left out while the one before it is being written.
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),  # pyright: ignore[reportArgumentType]
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,  # of a save that was killed
        )

    def steps(self) -> list[int]:
        """Steps that were saved and kept, ascending."""
        return sorted(checkpoint.step for checkpoint in self._orbax.checkpoints)

    def save(self, step: int, tree: Any, meta: Mapping[str, Any] | None = None) -> None:
        """Begins to save `tree` as of `step`, with JSON values that `restore_newest` returns.

        Raises OSError when the save before this failed.
        """
        with disk_errors(self.directory / str(step)):
            self._orbax.save_async(step, tree, custom_metadata=_metadata(tree, meta))

    def wait(self) -> None:
        """Returns when the last save is on disk; raises what went wrong with it."""
        with disk_errors(self.directory):
            self._orbax.wait()

    def close(self) -> None:
        """Returns when nothing is being written any more, well or not."""
        with contextlib.suppress(Exception):  # `wait` has raised it
            self._orbax.close()

    def restore_newest(self, like: T) -> tuple[int, T, dict[str, Any]] | None:
        """(step, tree, meta) of the newest checkpoint that can be read, or None.

        Damaged ones are named in the log and set aside (as `.STEP.old`, which the end of the run
        removes), so that the run can write them anew.

        Raises:
          ValueError: as `restore_tree`.
        """
        for step in reversed(self.steps()):
            try:
                return step, *_restore(self.directory / str(step), like)
            except Damaged as error:
                logging.warning("%s; going back to the one before it", error)
                _set_aside(self.directory / str(step))
                self._orbax.reload()
        return None


def abstract(x: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of an array, without its data; without a sharding of its own it
    goes to the first device, and never where the checkpoint's writer happened to have it."""
    sharding = getattr(x, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _restore(path: Path, like: T) -> tuple[T, dict[str, Any]]:
    if not path.exists():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    tree: Any = None
    meta: Any = {}
    like, wrong = jax.tree.map(abstract, like), ""
    try:
        tree = ocp.load(str(path), like)
        meta = ocp.metadata(str(path)).custom_metadata or {}
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # Orbax's, of many kinds
        wrong = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if "RESOURCE_EXHAUSTED" in wrong:
            raise
        if _another_model(path, like):
            raise ValueError(f"checkpoint {path} does not fit this model: {wrong}") from error
    if not wrong and meta.get("sums") != _sums(tree):
        wrong = "an array or its sum has been altered"
    # One process may not see what another has seen: all go by the worst.
    seen = multihost_utils.process_allgather(np.bool_(wrong)) if jax.process_count() > 1 else wrong
    if np.any(seen):
        raise Damaged(f"checkpoint {path} is damaged: {wrong or 'another process cannot read it'}")
    return tree, meta["given"]


@on_primary
def _set_aside(path: Path) -> None:
    aside = path.with_name(f".{path.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)


def _another_model(path: Path, like: Any) -> bool:
    """Whether the checkpoint, so far as it can be read, has other arrays than `like`."""
    try:
        saved = ocp.metadata(str(path)).metadata
    except Exception:  # it cannot: damaged
        return False
    return saved is not None and _shapes(saved) != _shapes(like)


def _by_name(tree: Any) -> dict[str, Any]:
    """Its leaves by their paths, alike for a dataclass and the dict that Orbax makes of it."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in _by_name(tree).items()}


def _metadata(tree: Any, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {"given": dict(given or {}), "sums": _sums(tree)}


def _sums(tree: Any) -> dict[str, int]:
    """For each array the sum of its bits, as numbers of its width, modulo 2^32: any changed bit
    changes it, and the order of summation, hence the mesh, does not."""
    # One after the other: programs that communicate and run at once can wait for each other for
    # ever. Arrays of one shape (a parameter and its moments) share a program.
    return {name: int(_bit_sum(x)) for name, x in _by_name(tree).items()}


@jax.jit
def _bit_sum(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    x = x.astype(jnp.uint8) if x.dtype == bool else x
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}"))
    return jnp.sum(bits, dtype=jnp.uint32)
