"""Scores on disk: one file per task, rewritten whole when models come.

A file's name is a hash of the task's held-out rows and of how divergences are computed, and it
holds the keys of its models, so nothing is ever taken for the scores of another task or model.
It is an npz archive; each array has a CRC-32, by which a damaged file is found when it is read:

  models          keys of k models ["k"]
  log_likelihood  sums over response tokens, nats, float64 ["k m"]
  tokens          response tokens of each example ["m"]
  pairs           indices of two models ["q 2"]
  divergence      their JSD by bin of examples, nats, float32 ["e q"]
"""

import hashlib
import logging
import zipfile
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from taskpgm.artefact import open_atomic
from taskpgm.multihost import on_primary

# What a file holds and how it was computed; another number makes all earlier files unknown.
VERSION = 2
# What numpy and zipfile raise for a file that is cut off or has wrong bytes.
_DAMAGED = (ValueError, KeyError, EOFError, OSError, RuntimeError, zipfile.BadZipFile, zlib.error)
_LOG = logging.getLogger(__name__)


class TaskScores(NamedTuple):
    """What models said about one task's held-out examples; NaN where nothing was computed."""

    models: tuple[str, ...]  # keys
    log_likelihood: Float[np.ndarray, "n m"]  # sums over response tokens, nats
    tokens: Int[np.ndarray, "m"]  # response tokens of each example
    divergence: Float[np.ndarray, "e n n"]  # mean JSD over the examples of a bin, nats


def select(scores: TaskScores, models: Sequence[str]) -> TaskScores:
    """The scores of `models` in this order; NaN for those that `scores` does not have."""
    place = {key: at for at, key in enumerate(scores.models)}
    to = [at for at, key in enumerate(models) if key in place]
    source = [place[models[at]] for at in to]
    log_likelihood = np.full((len(models), scores.log_likelihood.shape[1]), np.nan)
    log_likelihood[to] = scores.log_likelihood[source]
    bins = range(len(scores.divergence))
    divergence = np.full((len(bins), len(models), len(models)), np.nan)
    divergence[np.ix_(bins, to, to)] = scores.divergence[np.ix_(bins, source, source)]
    return TaskScores(tuple(models), log_likelihood, scores.tokens, divergence)


def merge(parts: Sequence[TaskScores], models: Sequence[str]) -> TaskScores:
    """The scores of `models`, each number from the first of `parts` that has it."""
    first, *others = (select(part, models) for part in parts)
    log_likelihood, divergence = first.log_likelihood, first.divergence
    for part in others:
        log_likelihood = np.where(np.isnan(log_likelihood), part.log_likelihood, log_likelihood)
        divergence = np.where(np.isnan(divergence), part.divergence, divergence)
    return TaskScores(tuple(models), log_likelihood, first.tokens, divergence)


def fingerprint(arrays: Iterable[np.ndarray], *settings: object) -> str:
    """Hash of the content, types and shapes of arrays, and of settings."""
    digest = hashlib.sha256(repr((VERSION, settings)).encode())
    for x in arrays:
        x = np.ascontiguousarray(x)
        digest.update(f"{x.dtype.str}{x.shape}".encode())
        digest.update(x.data)
    return digest.hexdigest()


@dataclass(frozen=True)
class ScoreStore:
    """A folder of score files. On many hosts the primary process reads and writes them."""

    folder: Path

    def path(self, task: str) -> Path:
        """The file of the task with this fingerprint."""
        return Path(self.folder) / f"{task}.npz"

    @on_primary
    def load(self, task: str) -> TaskScores | None:
        """None if there is no file, or, said in the log, if it is damaged."""
        path = self.path(task)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                models = tuple(map(str, archive["models"]))
                log_likelihood, tokens = archive["log_likelihood"], archive["tokens"]
                (i, j), values = archive["pairs"].T, archive["divergence"]
        except FileNotFoundError:
            return None
        except _DAMAGED as error:
            _LOG.warning("%s is damaged (%s): its task is scored again", path, error)
            return None
        divergence = np.full((len(values), len(models), len(models)), np.nan)
        divergence[:, i, j] = divergence[:, j, i] = values
        divergence[:, range(len(models)), range(len(models))] = 0.0
        return TaskScores(models, log_likelihood, tokens, divergence)

    @on_primary
    def add(self, task: str, computed: Sequence[TaskScores], models: Sequence[str]) -> None:
        """Rewrites a task's file: the scores of `models`, computed or stored before.

        Raises:
          OSError: the disk is full or the folder not writable; the earlier file is left.
        """
        stored = self.load(task)
        scores = merge([*computed, *([] if stored is None else [stored])], models)
        upper = np.triu(np.ones((len(scores.models),) * 2, bool), 1)
        pairs = np.argwhere(upper & np.isfinite(scores.divergence).all(0))
        path = self.path(task)
        try:
            with open_atomic(path) as file:
                np.savez(
                    file,
                    models=np.array(scores.models, dtype=np.str_),
                    log_likelihood=scores.log_likelihood,
                    tokens=scores.tokens,
                    pairs=pairs.astype(np.int32),
                    divergence=scores.divergence[:, pairs[:, 0], pairs[:, 1]].astype(np.float32),
                )
        except OSError as error:
            raise OSError(f"cannot write the scores {path}: {error.strerror or error}") from error

    @on_primary
    def prune(self, tasks: Collection[str]) -> None:
        """Deletes the files of all other tasks, so that the store's size is what the plan says."""
        for path in Path(self.folder).glob("*.npz"):
            if path.stem not in tasks:
                path.unlink(missing_ok=True)
