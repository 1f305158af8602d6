"""Trains a small regression by `fit`, again and again, killed on the way; run by test_loop.

Forks a process for each attempt, so that the imports are paid for once.
"""

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from taskpgm import interrupts
from taskpgm.training.checkpoint import save_tree
from taskpgm.training.loop import fit
from taskpgm.training.optimizer import make_optimizer
from taskpgm.training.state import create_state

STEPS = 100
KILLS = 7


def train(directory: Path, kill_at: int | None, pause: float) -> None:
    """Dies a moment after step `kill_at` got its batch, in the middle of whatever it is doing."""
    optimizer = make_optimizer({"lr": 0.05, "weight_decay": 0.0})
    dying = []

    @jax.jit
    def step(state, frozen, batch, key, total):
        mask = jax.random.bernoulli(jax.random.fold_in(key, state.step), 0.8, (16,))

        def loss(params):
            return jnp.mean((batch["tokens"] * mask @ params["w"] - batch["targets"]) ** 2)

        value, gradient = jax.value_and_grad(loss)(state.trainable)
        direction, moments = optimizer.transform.update(gradient, state.opt_state, state.trainable)
        rate = optimizer.learning_rate(state.step, total)
        moved = jax.tree.map(lambda p, d: p - rate * d, state.trainable, direction)
        state = state.replace(step=state.step + 1, trainable=moved, opt_state=moments)
        one = jnp.float32(1.0)
        return state, {"loss": value, "tokens": 3 * one, "grad_norm": one, "lr": rate}

    def batches(k):
        first = directory / "first"
        if not first.exists():
            first.write_text(str(k))
        if kill_at is not None and k >= kill_at and not dying:
            delay = random.Random(k).random() * 0.03
            dying.append(threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)))
            dying[0].start()
        time.sleep(pause)
        rng = np.random.default_rng(k)
        return {
            "tokens": rng.normal(size=(8, 16)).astype(np.float32),
            "targets": rng.normal(size=8).astype(np.float32),
        }

    state = create_state(optimizer, {"w": jnp.zeros(16)})
    options = dict(steps=STEPS, directory=directory, name="toy", checkpoint_every=7, log_every=4)
    state = fit(step, state, batches, **options)
    save_tree(directory / "final", {"w": state.trainable["w"], "step": state.step})


def attempt(directory: Path, kill_at: int | None = None, stop: bool = False) -> list[int | None]:
    """One process, killed near a step, or asked to stop once it has logged three times.

    Its exit code, the newest checkpoint that it found (0 for none) and the first step it made.
    """
    record, first = directory / "metrics.jsonl", directory / "first"
    directory.mkdir(exist_ok=True)
    first.unlink(missing_ok=True)
    names = [path.name for path in directory.glob("checkpoints/*")]
    found = max((int(name) for name in names if name.isdigit()), default=0)
    child = os.fork()
    if child == 0:
        train(directory, kill_at, pause=0.0 if kill_at is None and not stop else 0.004)
        os._exit(0)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            began = int(first.read_text()) if first.exists() else None
            return [os.waitstatus_to_exitcode(status), found, began]
        if stop and record.exists() and record.read_text().count("\n") >= 3:
            os.kill(child, signal.SIGTERM)
            stop = False
        time.sleep(0.002)


def main(root: Path) -> None:
    """Prints JSON: for each directory, of each attempt its exit code, the newest checkpoint it
    found and its first step. Touches no device before the forks."""
    interrupts.install()
    random.seed(1)
    kills = sorted(random.sample(range(3, 60), KILLS))
    told = {"whole": [attempt(root / "whole")]}
    told["killed"] = [attempt(root / "killed", step) for step in kills]
    told["killed"].append(attempt(root / "killed"))
    told["stopped"] = [attempt(root / "stopped", stop=True), attempt(root / "stopped")]
    print(json.dumps(told))
