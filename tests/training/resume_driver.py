"""Trains a small regression by `fit`, again and again, killed on the way; run by test_loop.

Forks a process for each attempt, so that the imports are paid for once. Prints one JSON line: for
each directory, the exit codes of its attempts.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # no device is touched before the forks
import jax.numpy as jnp
import numpy as np

from taskpgm.training.checkpoint import save_tree
from taskpgm.training.loop import fit
from taskpgm.training.optimizer import make_optimizer
from taskpgm.training.state import create_state

STEPS = 60


def train(directory: Path, pause: float) -> None:
    optimizer = make_optimizer({"lr": 0.05, "weight_decay": 0.0})

    @jax.jit
    def step(state, batch, key, total):
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


def attempt(directory: Path, after: int | None, how: int = signal.SIGKILL) -> int:
    """One process; told to end once metrics.jsonl has grown by `after` lines. Its exit code."""
    record = directory / "metrics.jsonl"
    start = record.read_text().count("\n") if record.exists() else 0
    child = os.fork()
    if child == 0:
        train(directory, pause=0.0 if after is None else 0.004)
        os._exit(0)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        lines = record.read_text().count("\n") if record.exists() else 0
        if after is not None and (lines >= start + after or lines < start):
            time.sleep(random.random() * 0.05)
            os.kill(child, how)
            after = None
        time.sleep(0.002)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    random.seed(int(sys.argv[2]))
    codes = {"whole": [attempt(root / "whole", None)]}
    codes["killed"] = [attempt(root / "killed", random.choice((1, 2))) for _ in range(10)]
    codes["killed"].append(attempt(root / "killed", None))
    codes["stopped"] = [attempt(root / "stopped", 3, signal.SIGTERM)]
    codes["stopped"].append(attempt(root / "stopped", None))
    print(json.dumps(codes))
