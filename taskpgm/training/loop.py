"""The training loop: data, step, metrics, checkpoints, preemption.

Resume order: 1. the newest whole checkpoint of this run's own directory; 2. the state given.
Everything that a step depends on is a function of the state and the step's number (the batch, the
dropout key, the learning rate), so a run that resumes at step k makes the very same steps after k.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from taskpgm.interrupts import RESUMABLE, exit_code
from taskpgm.multihost import preemption_requested
from taskpgm.progress import Reporter
from taskpgm.training.checkpoint import Checkpoints, abstract, disk_errors
from taskpgm.training.mesh import put_batch
from taskpgm.training.metrics import GroupWriter, StepLog, Writer
from taskpgm.training.state import TrainState
from taskpgm.training.step import Step

AHEAD = 2  # steps that are given to the devices before the oldest of them is waited for


class Preempted(SystemExit):
    """A signal came and the state has been saved. Uncaught, it exits with 75 (SIGINT: 130)."""

    def __init__(self, name: str, step: int):
        super().__init__(exit_code() or RESUMABLE)
        self.name, self.step = name, step

    def __str__(self) -> str:
        return f"run {self.name} was asked to stop; step {self.step} is saved, start it again"


def fit(
    step_fn: Step,
    state: TrainState,
    batches: Callable[[int], Mapping[str, Any]],
    *,
    frozen: Any = None,
    steps: int,
    directory: str | Path,
    name: str,
    checkpoint_every: int = 500,
    log_every: int = 10,
    seed: int | Sequence[int] = 0,
    totals: int | Sequence[int] | None = None,
    flops_per_token: Callable[[float], float] | float | None = None,
    keep: int = 2,
    board: str = "",
    members: Mapping[str, Path] | None = None,
) -> TrainState:
    """Trains until `steps` and returns the final state, which is also the last checkpoint.

    Args:
      step_fn: from `make_train_step`.
      state: from `create_state`; consumed.
      batches: step -> batch of numpy arrays, the same on all processes; called from a thread, one
        step ahead, and put on the mesh in force.
      frozen: the params beside an adapter, as the step takes them.
      directory: metrics.jsonl and checkpoints/ of this run. Called again with the
        same directory, the run goes on where it stopped; a finished one returns at once.
      name: of the run, for messages.
      seed: of dropout; with a group one for each task.
      totals: steps of the schedule, by default `steps`; of each task of a group.
      flops_per_token: operations for a position, best as a function of the share of positions that
        are scored (`flops.flops_per_token` with all else given); with it, MFU is logged where the
        devices' peak is known.
      keep: how many of the newest checkpoints are kept.
      board: "tensorboard" or "wandb" shows the metrics there too (`boards.open_board`).
      members: by name the folder of each task of a group, for metrics.jsonl of its own numbers; by
        default one in `directory` has the numbers of all.

    Raises:
      ValueError: when the loss is NaN or infinite, naming the step and the run.
      OSError: when the disk is full.
      Preempted: after SIGTERM or SIGINT, once `taskpgm.interrupts.install` has been called.
    """
    directory = Path(directory)
    with disk_errors(directory):
        checkpoints = Checkpoints(directory / "checkpoints", keep=keep)
        first, state, meta = _resume(checkpoints, state)
        if first >= steps:
            checkpoints.close()
            return state
        if first:
            logging.info("%s: resuming at step %d of %d", name, first, steps)
        if members:
            writer = GroupWriter(members, step=first, board=board)
        else:
            writer = Writer(directory, step=first, board=board, name=name)
        log = StepLog(
            name, writer, log_every, flops_per_token, meta.get("log"), list(members or ())
        )
        key = _keys(seed)
        total = jnp.asarray(steps if totals is None else totals, jnp.int32)
        reader, mesh = ThreadPoolExecutor(1, "batches"), jax.sharding.get_mesh()

        def load(step: int) -> dict[str, jax.Array]:
            return put_batch(batches(step), mesh)  # a thread has no mesh in force

        try:
            with Reporter(name, steps, start=first) as report:
                upcoming = reader.submit(load, first)
                report.update(first, "compiling")
                for step in range(first, steps):
                    with log.waiting():
                        batch = upcoming.result()
                    if step + 1 < steps:
                        upcoming = reader.submit(load, step + 1)
                    state, values = step_fn(state, frozen, batch, key, total)
                    if step == first:  # it is compiled, and under way
                        report.update(first)
                    log.add(step, values, batch["tokens"].size)
                    log.collect(leave=AHEAD)
                    done = step + 1
                    stop = preemption_requested() and done < steps
                    if stop or done == steps or done % checkpoint_every == 0:
                        log.collect(leave=0)  # so that a state with a NaN loss is never saved
                        checkpoints.save(done, state, {"log": log.partial})
                    if log.finished:
                        report.update(first + log.finished, log.note)
                    if stop:
                        checkpoints.wait()
                        raise Preempted(name, done)
            checkpoints.wait()
        finally:
            reader.shutdown(wait=True, cancel_futures=True)
            checkpoints.close()
            writer.close()
    return state


def _resume(checkpoints: Checkpoints, state: TrainState) -> tuple[int, TrainState, dict[str, Any]]:
    if not checkpoints.steps():
        return 0, state, {}
    like = jax.tree.map(abstract, state)
    # Two states at once may be more than there is room for.
    jax.tree.map(lambda x: x.delete(), state)
    found = checkpoints.restore_newest(like)
    if found is None:
        raise OSError(
            f"{checkpoints.directory}: every checkpoint is damaged and has been set aside; start "
            "the same command again, it trains from the beginning"
        )
    return found


def _keys(seed: int | Sequence[int]) -> jax.Array:
    if isinstance(seed, int | np.integer):
        return jax.random.key(seed)
    return jax.vmap(jax.random.key)(np.array(seed))
