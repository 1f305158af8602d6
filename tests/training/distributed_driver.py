"""Trains a tiny decoder for a few steps, alone or as one of several processes; used by
test_distributed, as a program: port, processes, this process, folder.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from taskpgm.models import DecoderConfig, init_params, logical_axes
from taskpgm.training import (
    create_state,
    fit,
    init_sharded,
    initialize_distributed,
    make_mesh,
    make_optimizer,
    make_train_step,
    put_batch,
)
from taskpgm.training.metrics import read

CONFIG = DecoderConfig(
    architecture="llama",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    max_position=64,
    initializer_range=0.2,
)


def rows(k, part, parts):
    """Rows of step k's batch: the given one of `parts` equal parts."""
    rng = np.random.default_rng(k)
    tokens = rng.integers(0, 64, (8, 12), dtype=np.int32)
    batch = {
        "tokens": tokens,
        "targets": (tokens * 7 + 3) % 64,
        "weights": (rng.random((8, 12)) < 0.8).astype(np.float32),
        "positions": np.tile(np.arange(12, dtype=np.int32), (8, 1)),
        "segment_ids": np.ones((8, 12), np.int32),
    }
    return {name: x[part * 8 // parts : (part + 1) * 8 // parts] for name, x in batch.items()}


def train(folder, stops):
    """The curve [(step, loss)] of 6 steps, stopped and resumed after each of `stops`."""
    part, parts = jax.process_index(), jax.process_count()
    mesh = make_mesh({"data": 2, "fsdp": 4})
    optimizer = make_optimizer({"lr": 3e-3})
    step = make_train_step(CONFIG, optimizer, chunk=8)
    for steps in stops:
        make = partial(init_params, CONFIG)
        params = init_sharded(make, jax.random.key(0), axes=logical_axes(CONFIG), mesh=mesh)
        fit(
            step,
            create_state(optimizer, params),
            lambda k: rows(k, part, parts),
            steps=steps,
            totals=6,
            directory=Path(folder),
            name="pair",
            log_every=1,
            put=partial(put_batch, mesh=mesh),
        )
    return [[row["step"], row["loss"]] for row in read(Path(folder) / "metrics.jsonl")]


if __name__ == "__main__":
    port, processes, process, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    jax.config.update("jax_num_cpu_devices", 8 // processes)
    jax.config.update("jax_disable_most_optimizations", True)
    initialize_distributed(f"localhost:{port}", processes, process)
    print(json.dumps(train(folder, (3, 6))))
