"""The training loop: data, step, metrics, checkpoints, preemption.

Resume order: 1. the newest whole checkpoint of this run's own directory; 2. the state given.
Everything that a step depends on is a function of the state and the step's number (the batch, the
dropout key, the learning rate), so a run that resumes at step k makes the very same steps after k.
"""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from taskpgm.training import checkpoint
from taskpgm.training.metrics import Writer
from taskpgm.training.progress import Reporter
from taskpgm.training.step import TrainState

RESUMABLE = 75  # EX_TEMPFAIL: "start the same command again"
AHEAD = 2  # steps that are given to the devices before one of them is waited for


class Preempted(SystemExit):
    """SIGTERM came; the state has been saved. Exits with code 75 if nobody catches it."""

    def __init__(self, name: str, step: int):
        super().__init__(RESUMABLE)
        self.name, self.step = name, step

    def __str__(self) -> str:
        return f"run {self.name} was asked to stop; step {self.step} is saved, start it again"


def fit(
    step_fn: Callable,
    state: TrainState,
    batches: Callable[[int], Mapping[str, Any]],
    *,
    steps: int,
    directory: str,
    name: str,
    checkpoint_every: int = 500,
    log_every: int = 10,
    seed: int | Sequence[int] = 0,
    totals: Sequence[int] | None = None,
    put: Callable[[Mapping[str, Any]], Any] = jax.device_put,
    metrics: Callable[[int], Writer] | None = None,
    flops_per_token: float | None = None,
    evaluate: Callable[[TrainState], float] | None = None,
    keep: int = 2,
) -> TrainState:
    """Trains until `steps` and returns the final state, which is also the last checkpoint.

    Args:
      step_fn: from `make_train_step`.
      batches: step -> batch of numpy arrays; called from a thread, one step ahead.
      directory: metrics.jsonl, tensorboard/ and checkpoints/ of this run. Called again with the
        same directory, the run goes on where it stopped; a finished one returns at once.
      name: of the run, for messages.
      seed: of dropout; with a group one for each task.
      totals: steps of each task of a group; `steps` is then their maximum.
      put: places a batch on the devices (`mesh.put_batch` for a mesh).
      metrics: makes the Writer for a run that resumes at the given step.
      evaluate: state -> loss, at every checkpoint; the best checkpoint is kept.
      keep: how many of the newest checkpoints are kept.

    Raises:
      ValueError: when the loss is NaN or infinite, naming the step and the run.
      OSError: when the disk is full.
      Preempted: after SIGTERM.
    """
    directory = Path(directory)
    manager = checkpoint.Manager(directory / "checkpoints", keep=keep)
    saved = manager.restore(_saved_part(state))
    first = 0
    if saved is not None:
        first, tree, _ = saved
        state = state.replace(**tree)
        logging.info("%s: resuming at step %d of %d", name, first, steps)
    if first >= steps:
        return state

    keys = jax.random.key(seed) if np.ndim(seed) == 0 else jax.vmap(jax.random.key)(
        jnp.asarray(seed)
    )
    total = jnp.asarray(steps if totals is None else totals, jnp.int32)
    writer = metrics(first) if metrics else Writer(directory, step=first)
    log = _Log(name, writer, log_every, flops_per_token)
    with (
        ThreadPoolExecutor(1, "batches") as reader,
        Reporter(name, steps, start=first) as report,
        _Sigterm() as asked,
    ):
        upcoming = reader.submit(lambda: put(batches(first)))
        try:
            for step in range(first, steps):
                batch = upcoming.result()
                if step + 1 < steps:
                    upcoming = reader.submit(lambda k=step + 1: put(batches(k)))
                state, values = step_fn(state, batch, keys, total)
                log.add(step, values)
                log.collect(leave=AHEAD)
                done = step + 1
                report.update(done, log.note)
                stop = asked.stop(done)
                if stop or done == steps or done % checkpoint_every == 0:
                    log.collect(leave=0)  # a state with a NaN loss is never saved
                    metric = float(evaluate(state)) if evaluate else None
                    if metric is not None:
                        writer.write(done, {"heldout_loss": metric})
                    manager.save(done, _saved_part(state), metric=metric)
                if stop and done < steps:
                    manager.wait()
                    raise Preempted(name, done)
        finally:
            upcoming.cancel()
            writer.close()
        manager.wait()
    return state


def _saved_part(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "trainable": state.trainable, "opt_state": state.opt_state}


class _Log:
    """Metrics on their way from the devices: a step's numbers are read AHEAD steps later."""

    def __init__(self, name, writer, every, flops_per_token):
        self.name, self.writer, self.every = name, writer, every
        self.flops_per_token = flops_per_token
        self.note = ""
        self._pending = deque()
        self._rows = []
        self._since = None

    def add(self, step, values):
        for value in values.values():
            value.copy_to_host_async()
        self._pending.append((step, values))

    def collect(self, leave):
        while len(self._pending) > leave:
            step, values = self._pending.popleft()
            values = {key: np.asarray(value) for key, value in values.items()}
            self._check(step, values["loss"])
            if self._since is None:  # the first step compiles: it does not count as speed
                self._since = time.monotonic()
            else:
                self._rows.append(values)
            if (step + 1) % self.every == 0:
                self._write(step + 1, values)

    def _check(self, step, loss):
        if not np.all(np.isfinite(loss)):
            which = f" (task {int(np.argmin(np.isfinite(loss)))} of the group)" if loss.ndim else ""
            kind = "NaN" if np.any(np.isnan(loss)) else "infinite"
            raise ValueError(
                f"the loss is {kind} at step {step} of run {self.name}{which}; lower the learning "
                "rate, clip gradients, or look at the data of that step"
            )

    def _write(self, done, last):
        rows = self._rows or [last]
        tokens = np.sum([row["tokens"] for row in rows], axis=0)
        loss = np.sum([row["loss"] * row["tokens"] for row in rows], axis=0)
        values = {
            "loss": loss / np.maximum(tokens, 1),
            "grad_norm": last["grad_norm"],
            "lr": last["lr"],
            "tokens": tokens,
        }
        now = time.monotonic()
        if self._rows:
            seconds = max(now - self._since, 1e-9)
            values["steps_per_second"] = len(self._rows) / seconds
        self.note = f"loss {float(np.mean(values['loss'])):.4f}"
        self.writer.write(done, values)
        self._rows, self._since = [], now


class _Sigterm:
    """While open, SIGTERM sets a flag instead of killing."""

    def __init__(self):
        self._flag = False
        self._before = None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._set)
        return self

    def __exit__(self, *_):
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _set(self, *_):
        self._flag = True

    def stop(self, step):
        """Whether to stop after `step`; all processes answer alike."""
        if jax.process_count() == 1:
            return self._flag
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)
