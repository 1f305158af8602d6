"""The two sides of bench_real.py: each function is one measurement, in a process of its own.

A world is a folder: base/ (a Hugging Face folder), start/ and adapterI/ (PEFT folders), train.npz
(packed rows of each step of each task), heldout.json (of each task: ids of its examples, and where
the response begins). Losses are means over scored tokens, and both sides see the same examples in
the same steps. Ours has them packed in rows; the other side has a row for each, padded to the
longest of its batch, as the usual data collators do.
"""

import json
import os
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


def timed(run: Callable[[], Any]) -> dict:
    """The result of a second call, the seconds of both: the first one compiles or warms up."""
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "seconds": seconds[1], "result": result}


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
    losses, times = [], [time.perf_counter()]
    for k in range(steps):
        state, metrics = step(state, params, {f: world[f][:, k] for f in FIELDS}, keys, total)
        losses.append(np.asarray(metrics["loss"]).tolist())
        times.append(time.perf_counter())
    each = np.diff(times)
    return {"first": each[0], "seconds": float(each[1:].sum()), "result": losses}


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

    def clock(run: Callable[[], Any], count: int) -> float:
        jax.block_until_ready(run())
        best = np.inf
        for _ in range(3):
            start = time.perf_counter()
            for _ in range(count):
                found = run()
            jax.block_until_ready(found)
            best = min(best, (time.perf_counter() - start) / count)
        return best

    times = jax.jit(lambda x, w: x @ w)
    layer = sum(clock(lambda w=w: times(inputs[w.shape[0]], w), 20) for w in matrices)
    unembed = clock(lambda: times(hidden, head), 5)
    batches, chunks = rows / AT_ONCE, scored / 64
    seconds = len(examples) * (batches * config.num_layers * layer + chunks * unembed)
    return {"first": 0.0, "seconds": seconds, "result": None}


def evaluate_ours(folder: Path) -> dict:
    from taskpgm.models import generate, score_model

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


# --- transformers and peft -----------------------------------------------------------------------
def padded(examples: list) -> tuple:
    """ids, mask and labels of one batch, padded to its longest."""
    import torch

    longest = max(len(ids) for ids, _ in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (tokens, begin) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, : len(tokens)] = 1
        labels[row, begin : len(tokens)] = torch.tensor(tokens[begin:])
    return ids, mask, labels


def their_model(folder: Path, adapter: str, trainable: bool = False) -> Any:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    model = PeftModel.from_pretrained(model, folder / adapter, is_trainable=trainable)
    return model.train() if trainable else model.eval()


def train_theirs(folder: Path) -> dict:
    import torch

    world, rates = np.load(folder / "train.npz"), np.load(folder / "rates.npy")
    n, steps = world["tokens"].shape[:2]
    losses, times = np.zeros((steps, n)), np.zeros((steps, n))
    for i in range(n):
        model = their_model(folder, "start", trainable=True)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=0.0)
        for k in range(steps):
            start = time.perf_counter()
            fields = (world[f][i, k] for f in ("tokens", "weights", "segment_ids"))
            ids, mask, labels = padded(segments(*fields))
            optimizer.param_groups[0]["lr"] = float(rates[k])
            optimizer.zero_grad(set_to_none=True)
            loss = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            losses[k, i] = loss.item()
            times[k, i] = time.perf_counter() - start
    each = times.sum(1)
    return {"first": each[0], "seconds": float(each[1:].sum()), "result": losses.tolist()}


def pmi_theirs(folder: Path) -> dict:
    import torch

    examples, found, seconds = heldout(folder), [], 0.0
    for i in range(len(examples)):
        model = their_model(folder, f"adapter{i}")
        start, nats = time.perf_counter(), []
        for task in examples:
            for at in range(0, len(task), AT_ONCE):
                ids, mask, labels = padded(task[at : at + AT_ONCE])
                with torch.inference_mode():
                    said = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
                wanted = labels[:, 1:]
                value = said.gather(-1, wanted.clamp(min=0)[..., None])[..., 0].double()
                nats += (value * (wanted >= 0)).sum(1).tolist()
        seconds += time.perf_counter() - start
        found.append(nats)
    return {"first": seconds, "seconds": seconds, "result": found}


def evaluate_theirs(folder: Path) -> dict:
    import torch

    model = their_model(folder, "start")
    examples = [x for task in heldout(folder) for x in task]

    def run() -> list:
        total, count = 0.0, 0
        for at in range(0, len(examples), AT_ONCE):
            ids, mask, labels = padded(examples[at : at + AT_ONCE])
            with torch.inference_mode():
                loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            scored = int((labels >= 0).sum())
            total, count = total + float(loss) * scored, count + scored
        return [total / count]

    loss = timed(run)
    prompts = sorted((ids[:begin] for ids, begin in examples), key=len)[: 4 * AT_ONCE]

    def write() -> list:
        found = []
        for at in range(0, len(prompts), AT_ONCE):
            some = prompts[at : at + AT_ONCE]
            longest = max(map(len, some))
            ids = torch.tensor([[0] * (longest - len(x)) + x for x in some])
            mask = torch.tensor([[0] * (longest - len(x)) + [1] * len(x) for x in some])
            with torch.inference_mode():
                new = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=False,
                    max_new_tokens=NEW_TOKENS,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            found += new[:, longest:].tolist()
        return found

    return {"loss": loss, "generation": timed(write)}
