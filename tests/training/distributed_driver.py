"""Trains a tiny decoder, alone or as one of several processes; used by test_distributed."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np

from taskpgm.models import (
    LoraConfig,
    init_lora,
    init_params,
    logical_axes,
    lora_logical_axes,
    to_host,
)
from taskpgm.models.sharding import shardings_of
from taskpgm.multihost import initialize_distributed
from taskpgm.training import (
    create_state,
    fit,
    make_mesh,
    make_optimizer,
    make_train_step,
    place,
    put_batch,
    save_tree,
    unstack,
)
from taskpgm.training.metrics import read
from tests.tiny_decoder import TINY

ADAPTED = dataclasses.replace(TINY, lora=LoraConfig(rank=4, alpha=8.0))


def rows(k):
    """Step k's batch."""
    rng = np.random.default_rng(k)
    tokens = rng.integers(0, 64, (8, 12), dtype=np.int32)
    return {
        "tokens": tokens,
        "targets": (tokens * 7 + 3) % 64,
        "weights": (rng.random((8, 12)) < 0.8).astype(np.float32),
        "positions": np.tile(np.arange(12, dtype=np.int32), (8, 1)),
        "segment_ids": np.ones((8, 12), np.int32),
    }


def weights():
    """Params on the host, the same in all processes."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(partial(init_params, TINY), jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(scale=0.2, size=x.shape).astype(x.dtype), shapes)


def train(folder, stops=(3, 6), **options):
    """The curve [(step, loss)] of 6 steps, stopped and resumed after each of `stops`."""
    optimizer = make_optimizer({"lr": 3e-3})
    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 4})):
        for steps in stops:
            state = create_state(optimizer, weights(), axes=logical_axes(TINY))
            fit(
                make_train_step(TINY, optimizer, state, chunk=8),
                state,
                rows,
                steps=steps,
                totals=6,
                directory=Path(folder),
                name="pair",
                log_every=1,
                **options,
            )
    return [[row["step"], row["loss"]] for row in read(Path(folder) / "metrics.jsonl")]


def train_group(folder):
    """The losses [[loss of a task] ...] of two tasks' adapters, each task on half of the devices;
    saves the first task's adapter alone in folder/first."""
    config, axes = ADAPTED, lora_logical_axes(ADAPTED)
    optimizer = make_optimizer({"lr": 3e-3})
    with jax.set_mesh(make_mesh({"task": 2, "fsdp": 4})):
        where = shardings_of(logical_axes(config), weights())
        params = jax.tree.map(place, weights(), where)
        lora = init_lora(config, jax.random.key(1))
        both = jax.tree.map(lambda x: np.stack([to_host(x)] * 2), lora)
        state = create_state(optimizer, both, group=True, axes=axes)
        step = make_train_step(config, optimizer, state, chunk=8)
        key, total = jax.random.split(jax.random.key(2)), jax.numpy.full(2, 4)
        losses = []
        for k in range(4):
            batch = jax.tree.map(lambda *x: np.stack(x), rows(k), rows(k + 100))
            state, values = step(state, params, put_batch(batch), key, total)
            losses.append(np.asarray(values["loss"]).tolist())
        first, _ = unstack(state.trainable, axes)
        save_tree(Path(folder) / "first", first)
    print(json.dumps(losses))
    return losses


def train_and_on(folder):
    """Trains, prints the curve, and trains on elsewhere until it is told to stop."""
    print(json.dumps(train(folder)), flush=True)
    train(Path(folder) / "on", stops=(10**7,), checkpoint_every=10**7)


def main(what, folder, port, process):
    """What one of two processes does: a function of this file."""
    initialize_distributed(f"localhost:{port}", 2, int(process))
    return globals()[what](folder)
