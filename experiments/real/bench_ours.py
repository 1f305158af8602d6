"""Our side of bench_real.py: each function is one measurement, in a process of its own.

A world is a folder: base/ (a Hugging Face folder), start/ and adapterI/ (PEFT folders), train.npz
(packed rows of each step of each task), heldout.json (of each task: ids of its examples, and where
the response begins). Losses are means over scored tokens, and both sides see the same examples in
the same steps. Ours has them packed in rows; the other side has a row for each, padded to the
longest of its batch, as the usual data collators do.
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OPTIMIZER = {"lr": 1e-3, "weight_decay": 0.0, "warmup": 0.1}
FIELDS = ("tokens", "targets", "weights", "positions", "segment_ids")
LENGTH, ROWS, AT_ONCE, NEW_TOKENS = 128, 4, 8, 16
MEMORY = 2**30


def heldout(folder: Path) -> list:
    """Of each task, [ids, begin of the response] of each example."""
    return json.loads((folder / "heldout.json").read_text())


def packed(examples: list) -> Any:
    """The examples as packed rows."""
    from taskpgm.tasks import pack
    from taskpgm.tasks.tokenize import Encoded

    ids = [np.array(x, np.int32) for x, _ in examples]
    scored = [np.arange(len(x)) >= begin for x, begin in examples]
    return pack(Encoded(ids, scored, np.arange(len(ids), dtype=np.int32), 0, 0), LENGTH)


def segments(tokens: np.ndarray, weights: np.ndarray, segment_ids: np.ndarray) -> list:
    """The examples of packed rows [b t], as in `heldout`."""
    found = []
    for row in range(len(tokens)):
        for segment in range(1, segment_ids[row].max() + 1):
            at = np.flatnonzero(segment_ids[row] == segment)
            begin = int(np.flatnonzero(weights[row, at])[0]) + 1
            found.append([tokens[row, at].tolist(), begin])
    return found


class Clock:
    """Seconds by the clock and of all cores, since it was made or last asked."""

    def __init__(self) -> None:
        self.at = time.perf_counter(), time.process_time()

    def lap(self) -> np.ndarray:
        before, self.at = self.at, (time.perf_counter(), time.process_time())
        return np.subtract(self.at, before)


def measured(first: np.ndarray, later: np.ndarray, result: Any) -> dict:
    """What a side tells: both kinds of seconds, those of the first round apart, and its result."""
    return {
        "first": float(first[0]),
        "seconds": float(later[0]),
        "cpu": float(later[1]),
        "result": result,
    }


def timed(run: Callable[[], Any]) -> dict:
    """A second call, after a first one that compiles or warms up."""
    clock = Clock()
    run()
    first, result = clock.lap(), run()
    return measured(first, clock.lap(), result)


# --- Ours ----------------------------------------------------------------------------------------
def our_model(folder: Path) -> tuple:
    from taskpgm import models

    config, params = models.load_hf(folder / "base")
    lora, start = models.load_peft(folder / "start", config)
    return replace(config, lora=lora), params, start


def train_ours(folder: Path) -> dict:
    import jax
    import jax.numpy as jnp

    from taskpgm import training

    config, params, start = our_model(folder)
    world = np.load(folder / "train.npz")
    n, steps = world["tokens"].shape[:2]
    optimizer = training.make_optimizer(OPTIMIZER)
    stacked = jax.tree.map(lambda x: jnp.stack([x] * n), start)
    state = training.create_state(optimizer, stacked, group=True)
    step = training.make_train_step(config, optimizer, state)
    keys, total = jax.random.split(jax.random.key(0), n), jnp.full(n, steps, jnp.int32)
    losses, laps, clock = [], [], Clock()
    for k in range(steps):
        state, metrics = step(state, params, {f: world[f][:, k] for f in FIELDS}, keys, total)
        losses.append(np.asarray(metrics["loss"]).tolist())
        laps.append(clock.lap())
    return measured(laps[0], np.sum(laps[1:], axis=0), losses)


def our_adapters(folder: Path, config: Any) -> Any:
    import jax

    from taskpgm import models

    count = len(list(folder.glob("adapter*")))
    loras = [models.load_peft(folder / f"adapter{i}", config)[1] for i in range(count)]
    return jax.tree.map(lambda *x: np.stack(x), *loras)


def score_ours(folder: Path, contexts: str | None) -> dict:
    import jax

    from taskpgm import affinity

    config, params, _ = our_model(folder)
    loras, examples = our_adapters(folder, config), heldout(folder)

    def run() -> list:
        with tempfile.TemporaryDirectory() as store:
            scores = affinity.compute_scores(
                config,
                params,
                lambda some: jax.device_put(jax.tree.map(lambda x: x[np.asarray(some)], loras)),
                [packed(task) for task in examples],
                [len(task) for task in examples],
                model_keys=[str(i) for i in range(len(examples))],
                folder=store,
                memory=MEMORY,
                batch_size=AT_ONCE,
                contexts=contexts,
            )
        return scores.log_likelihood.tolist()

    return timed(run)


def pmi_ours(folder: Path) -> dict:
    return score_ours(folder, None)


def jsd_ours(folder: Path) -> dict:
    return score_ours(folder, "pool")


def products(folder: Path) -> dict:
    """The matrix products alone of every model on every held-out set: nothing between them."""
    import jax
    import jax.numpy as jnp

    config, params, _ = our_model(folder)
    examples = heldout(folder)
    rows = sum(len(packed(task).tokens) for task in examples)
    scored = sum(len(ids) - begin for task in examples for ids, begin in task)
    d, f = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = [(d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)]
    inputs = {size: jnp.ones((AT_ONCE * LENGTH, size)) for size in {d, q, f}}
    matrices = [jnp.ones(shape) for shape in shapes]
    head, hidden = jnp.ones((d, config.vocab_size)), jnp.ones((64, d))

    def best(run: Callable[[], Any], count: int) -> np.ndarray:
        jax.block_until_ready(run())
        clock, laps = Clock(), []
        for _ in range(3):
            jax.block_until_ready([run() for _ in range(count)])
            laps.append(clock.lap() / count)
        return np.min(laps, axis=0)

    times = jax.jit(lambda x, w: x @ w)
    layer = np.sum([best(lambda w=w: times(inputs[w.shape[0]], w), 8) for w in matrices], axis=0)
    unembed = best(lambda: times(hidden, head), 4)
    batches, chunks = rows / AT_ONCE, scored / 64
    each = batches * config.num_layers * layer + chunks * unembed
    return measured(np.zeros(2), len(examples) * each, None)


def evaluate_ours(folder: Path) -> dict:
    from taskpgm.models import generate
    from taskpgm.models.scoring import score_model

    config, params, start = our_model(folder)
    examples = [x for task in heldout(folder) for x in task]
    rows = packed(examples)

    def run() -> list:
        nats, tokens = score_model(
            config, params, rows, len(examples), lora=start, batch_size=AT_ONCE
        )
        return [float(-nats.sum() / tokens.sum())]

    loss = timed(run)
    prompts = sorted((ids[:begin] for ids, begin in examples), key=len)[: 4 * AT_ONCE]

    def write() -> list:
        found = []
        for at in range(0, len(prompts), AT_ONCE):
            some = prompts[at : at + AT_ONCE]
            found += generate(config, params, some, max_new_tokens=NEW_TOKENS, lora=start)
        return found

    return {"loss": loss, "generation": timed(write)}
