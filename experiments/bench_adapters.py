"""How fast are n single-task LoRA models trained, against a loop over tasks in transformers + peft?

    python experiments/bench_adapters.py            # a few minutes on 2 CPU cores
    python experiments/bench_adapters.py --quick    # tiny shapes: does it run at all?

Needs the extra `dev`. Both sides are whole processes: imports, loading the base, compiling,
training, saving the adapters as PEFT folders. They start from the same adapters, see the same
batches in the same order under the same learning rates (AdamW, cosine, clipping at 1), and have to
end at the same losses within 2%. The tasks are random Markov chains over the vocabulary, so that
there is something to learn. Writes experiments/results/bench_adapters.json and .md.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from record import header, machine

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "flax", "optax", "torch", "transformers", "peft")
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OPTIMIZER = {"lr": 2e-3, "weight_decay": 0.0, "warmup": 0.05}
VOCABULARY = 2048


def make_world(folder: Path, n: int, steps: int, rows: int, length: int, width: int, layers: int):
    """A random base, n untrained adapters, and the batches of every task, on disk."""
    import jax

    from taskpgm import models, training

    config = models.DecoderConfig.from_hf(
        {
            "model_type": "llama",
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "intermediate_size": 11 * width // 4,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
        }
    )
    lora = models.LoraConfig(rank=8, alpha=16.0, targets=TARGETS)
    adapted = dataclasses.replace(config, lora=lora)
    models.save_hf(folder / "base", config, models.init_params(config, jax.random.key(0)))
    base = str(folder / "base")
    models.save_peft(folder / "start", adapted, models.init_lora(adapted, jax.random.key(1)), base)
    rng = np.random.default_rng(0)
    for i in range(n):
        # A token is followed by one of four, and its last six bits say which four.
        follows = rng.integers(0, VOCABULARY, (VOCABULARY, 4))
        tokens = np.empty((steps, rows, length + 1), np.int32)
        tokens[..., 0] = rng.integers(0, VOCABULARY, (steps, rows))
        for t in range(length):
            choice = rng.integers(0, 4, (steps, rows))
            tokens[..., t + 1] = follows[tokens[..., t] % 64, choice]
        np.save(folder / f"task{i}.npy", tokens)
    rates = [training.make_optimizer(OPTIMIZER).learning_rate(k, steps) for k in range(steps)]
    np.save(folder / "rates.npy", np.array(rates, np.float64))


def train_ours(folder: Path, n: int, steps: int, group: int) -> list[list[float]]:
    """All adapters in groups of `group`, each group one program; the losses [n steps]."""
    import jax
    import jax.numpy as jnp

    from taskpgm import models, training

    config, params = models.load_hf(folder / "base")
    lora, start = models.load_peft(folder / "start", config)
    adapted = dataclasses.replace(config, lora=lora)
    optimizer = training.make_optimizer(OPTIMIZER)
    losses = []
    for first in range(0, n, group):
        tokens = np.stack([np.load(folder / f"task{i}.npy") for i in range(first, first + group)])
        shape = tokens[:, 0, :, 1:].shape
        fixed = {
            "weights": np.ones(shape, np.float32),
            "positions": np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape),
            "segment_ids": np.ones(shape, np.int32),
        }
        lora = jax.tree.map(lambda x: jnp.stack([x] * group), start)
        state = training.create_state(optimizer, lora, group=True)
        step = training.make_train_step(adapted, optimizer, state)
        keys, total = jax.random.split(jax.random.key(0), group), jnp.full(group, steps, jnp.int32)
        said = []
        for k in range(steps):
            batch = {"tokens": tokens[:, k, :, :-1], "targets": tokens[:, k, :, 1:], **fixed}
            state, metrics = step(state, params, batch, keys, total)
            said.append(metrics["loss"])
        losses += np.array(jax.device_get(said)).T.tolist()
        for i in range(group):
            own = jax.tree.map(lambda x, i=i: np.asarray(x[i]), state.trainable)
            target = folder / f"ours{first + i}"
            models.save_peft(target, adapted, own, str(folder / "base"))
    return losses


def train_peft(folder: Path, n: int, steps: int) -> list[list[float]]:
    """The loop over tasks that one would write with transformers and peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count())
    rates, losses = np.load(folder / "rates.npy"), []
    for i in range(n):
        tokens = torch.from_numpy(np.load(folder / f"task{i}.npy")).long()
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        model = PeftModel.from_pretrained(model, folder / "start", is_trainable=True).train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=0.0)
        said = []
        for k in range(steps):
            optimizer.param_groups[0]["lr"] = rates[k]
            optimizer.zero_grad(set_to_none=True)
            logits = model(input_ids=tokens[k, :, :-1], use_cache=False).logits
            target = tokens[k, :, 1:].reshape(-1)
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            said.append(loss.detach())
        losses.append(torch.stack(said).tolist())
        model.save_pretrained(folder / f"theirs{i}")
    return losses


SIDES = {"taskpgm": train_ours, "transformers + peft": train_peft}


def whole_process(side: str, folder: Path, **arguments) -> tuple[float, np.ndarray]:
    """Seconds from the start of a process to its end, and the losses it wrote."""
    command = [sys.executable, __file__, "--side", side, str(folder), json.dumps(arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    return seconds, np.array(json.loads((folder / "losses.json").read_text()))


def bench(n: int, steps: int, groups: list[int], rows: int, length: int, width: int, layers: int):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_world(folder, n, steps, rows, length, width, layers)
        theirs, there = whole_process("transformers + peft", folder, n=n, steps=steps)
        out = {"transformers + peft, one after the other": {"seconds": theirs}}
        for group in groups:
            ours, here = whole_process("taskpgm", folder, n=n, steps=steps, group=group)
            last = max(1, steps // 10)
            ends = [x[:, -last:].mean(1) for x in (here, there)]
            apart = np.abs(ends[0] / ends[1] - 1).max()
            assert apart < 0.02, f"the losses are {apart:.1%} apart"
            out[f"taskpgm, groups of {group}"] = {
                "seconds": ours,
                "times faster": theirs / ours,
                "largest relative difference of the losses": apart,
            }
    return {
        "n": n,
        "steps": steps,
        "rows": rows,
        "length": length,
        "width": width,
        "layers": layers,
        "tokens": n * steps * rows * length,
        "sides": out,
        "loss, first step": there[:, 0].mean(),
        "loss, last tenth": ends[1].mean(),
    }


def table(report: dict) -> str:
    r = report["result"]
    lines = header("Single-task LoRA models", report["machine"])
    lines += [
        "",
        f"{r['n']} adapters of rank 8 on a Llama of width {r['width']} and {r['layers']} layers, "
        f"{VOCABULARY} entries, {r['steps']} steps of {r['rows']} x {r['length']} tokens each. The "
        f"loss falls from {r['loss, first step']:.3f} to {r['loss, last tenth']:.3f} nats. Whole "
        "processes, imports and compilation included.",
        "",
        "| | seconds | times faster | losses differ by at most |",
        "|---|---|---|---|",
    ]
    for name, x in r["sides"].items():
        difference = x.get("largest relative difference of the losses")
        more = f"{x['times faster']:.2f} | {difference:.2%}" if difference is not None else " | "
        lines.append(f"| {name} | {x['seconds']:.1f} | {more} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes, nothing recorded")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side, folder, arguments = args.side
        losses = SIDES[side](Path(folder), **json.loads(arguments))
        (Path(folder) / "losses.json").write_text(json.dumps(losses))
        return
    run = partial(bench, rows=4, length=128)
    report = {"machine": machine(PACKAGES)}
    if args.quick:
        report["result"] = run(2, steps=3, groups=[2], width=32, layers=1)
    else:
        report["result"] = run(12, steps=100, groups=[12, 4, 1], width=128, layers=4)
    print(table(report))
    if not args.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "bench_adapters.json").write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / "bench_adapters.md").write_text(table(report))


if __name__ == "__main__":
    main()
