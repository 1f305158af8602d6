"""How fast is a training step, against a loop in torch with transformers and peft?

    python experiments/bench_train.py                 # what this machine can run; minutes
    python experiments/bench_train.py --quick         # tiny shapes: does it run at all?
    python experiments/bench_train.py --only gpt2     # the tables whose name begins like this

Needs the extra `dev` for the peers. Writes experiments/results/bench_train.json and
.md with the machine, the versions and the command. Each number comes from a process of its own, the
two sides of a row one after the other in one run; a step's time is the median of several. Rows of
hardware that is not at hand say "not measured".

  tiny, gpt2, 1b, 7b   tokens/s, MFU, compile time and peak memory, full and LoRA, ours and torch
  group                adapters side by side against one alone, tokens/s, on tiny, 1b and 7b
  depth                compile time of 4 and of 32 layers
  goodput              steps in `fit`, with metrics and checkpoints, against the bare steps
  product              the matrix products of GPT-2 alone: what XLA's CPU library is behind by

MFU = flops_per_token * tokens/s / peak, by the formula of taskpgm/training/flops.py: matrices and
causal attention, frozen weights without the gradient that they do not have. The peak is the
vendor's for dense bf16 on an accelerator; on a CPU, where none is stated, it is the best that a
large float32 product by either library reaches in the same run.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from record import header, machine

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft")
RESULTS = ROOT / "experiments" / "results"
ACCELERATOR = ("1b", "7b")  # shapes that only an accelerator is asked for

# shape: decoder, rows, length, layers in full mode (what one device of 80 GB or more holds)
LLAMA = dict(architecture="llama", max_position=4096, norm_eps=1e-5)
SHAPES = {
    "tiny": (
        dict(
            LLAMA,
            vocab_size=2048,
            hidden_size=128,
            intermediate_size=352,
            num_layers=4,
            num_heads=4,
            num_kv_heads=4,
            head_dim=32,
        ),
        8,
        128,
        4,
    ),
    "gpt2": (
        dict(
            architecture="gpt2",
            vocab_size=50257,
            hidden_size=768,
            intermediate_size=3072,
            num_layers=12,
            num_heads=12,
            num_kv_heads=12,
            head_dim=64,
            max_position=1024,
            rope_theta=None,
            norm="layer",
            norm_eps=1e-5,
            activation="gelu_new",
            gated_mlp=False,
            qkv_bias=True,
            o_bias=True,
            mlp_bias=True,
            tie_embeddings=True,
        ),
        4,
        256,
        12,
    ),
    "1b": (
        dict(
            LLAMA,
            vocab_size=32000,
            hidden_size=2048,
            intermediate_size=5632,
            num_layers=22,
            num_heads=32,
            num_kv_heads=4,
            head_dim=64,
            dtype="bfloat16",
            remat="full",
        ),
        8,
        2048,
        22,
    ),
    "7b": (
        dict(
            LLAMA,
            vocab_size=32000,
            hidden_size=4096,
            intermediate_size=11008,
            num_layers=32,
            num_heads=32,
            num_kv_heads=32,
            head_dim=128,
            dtype="bfloat16",
            remat="full",
        ),
        4,
        4096,
        16,
    ),
}
SIDE_BY_SIDE = (4, 512)  # rows and length of each of several adapters
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")


# --- One measurement, in a process of its own ----------------------------------------------------
def random_batch(vocabulary, rows, length):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, vocabulary, (rows, length + 1), dtype=np.int32)
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": np.ones((rows, length), np.float32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "segment_ids": np.ones((rows, length), np.int32),
    }


def timed(step, seconds):
    """(median, best) seconds of a step, run for about `seconds` after two that do not count."""
    for _ in range(2):
        step()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times), min(times)


def peak_memory():
    import jax

    stats = jax.local_devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def decoder(shape, mode, layers=0):
    from taskpgm.models import DecoderConfig, LoraConfig

    fields, rows, length, most = SHAPES[shape]
    config = DecoderConfig(**fields)
    if mode == "full":
        config = replace(config, num_layers=most)
    elif config.dtype == "bfloat16":
        config = replace(config, param_dtype="bfloat16")  # frozen: nothing is lost by it
    if mode != "full":
        config = replace(config, lora=LoraConfig(rank=8, alpha=32.0, targets=TARGETS))
    return replace(config, num_layers=layers or config.num_layers), rows, length


def build(config, mode, rows, length, group=0):
    """(step, state, its other arguments) of our training step on a random model and batch."""
    import jax
    import jax.numpy as jnp

    from taskpgm import training
    from taskpgm.models import init_lora, init_params

    optimizer = training.make_optimizer({"lr": 1e-4})
    params = init_params(config, jax.random.key(0))
    batch, key, total = random_batch(config.vocab_size, rows, length), jax.random.key(1), 10**6
    if group:
        key = jax.random.split(key, group)
        lora = jax.vmap(partial(init_lora, config))(key)
        state = training.create_state(optimizer, lora, group=True)
        batch = {name: np.stack([x] * group) for name, x in batch.items()}
        total = jnp.full(group, total, jnp.int32)
    elif mode == "lora":
        state = training.create_state(optimizer, init_lora(config, key))
        total = jnp.int32(total)
    else:
        state, total = training.create_state(optimizer, params), jnp.int32(total)
    step = training.make_train_step(config, optimizer, state, chunk=1024)
    return step, state, (None if mode == "full" else params, jax.device_put(batch), key, total)


def ours(shape, mode, seconds, group=0, layers=0, batch=None, attention="auto"):
    import jax

    from taskpgm.training import flops_per_token

    config, rows, length = decoder(shape, mode, layers)
    config = replace(config, attention=attention)
    rows, length = batch or (rows, length)
    step, state, args = build(config, mode, rows, length, group)
    box = [state]

    def once():
        box[0], metrics = step(box[0], *args)
        jax.block_until_ready(metrics)
        return metrics

    start = time.perf_counter()
    once()
    first = time.perf_counter() - start
    median, best = timed(once, seconds)
    tokens = rows * length * max(group, 1)
    return {
        "seconds": median,
        "best": best,
        "tokens_per_second": tokens / median,
        "compile_seconds": first - median,
        "peak_bytes": peak_memory(),
        "flops_per_token": flops_per_token(config, length),
        "layers": config.num_layers,
        "rows": rows,
        "length": length,
    }


def torch_model(config, mode):
    import torch
    import transformers

    raw = config.to_hf() | {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    kind = transformers.AutoConfig.for_model(raw.pop("model_type"), **raw)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    model = transformers.AutoModelForCausalLM.from_config(kind, dtype=dtype).to(device)
    if config.remat != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if mode == "lora":
        import peft

        # GPT-2 has one matrix for queries, keys and values; c_proj is also the MLP's second.
        targets = list(TARGETS)
        if config.architecture == "gpt2":
            targets = r".*attn\.(c_attn|c_proj)"
        lora = peft.LoraConfig(r=8, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, lora)
        if config.remat != "none":
            model.enable_input_require_grads()
    return model.train(), device


def torch_loop(shape, mode, seconds):
    import torch

    config, rows, length = decoder(shape, mode)
    model, device = torch_model(config, mode)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.1)
    tokens = torch.as_tensor(random_batch(config.vocab_size, rows, length)["tokens"]).to(device)
    tokens = tokens.long()

    def once():
        optimizer.zero_grad(set_to_none=True)
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        return loss.item()

    median, best = timed(once, seconds)
    cuda = device == "cuda"
    used = torch.cuda.max_memory_allocated() if cuda else 0
    return {
        "seconds": median,
        "best": best,
        "tokens_per_second": rows * length / median,
        "peak_bytes": used or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def goodput(shape, seconds, rounds=7):
    """Seconds a step of `fit`, with metrics, TensorBoard and checkpoints, and of the bare step.

    They take turns, since a machine's speed drifts by more than they differ; the medians over all
    rounds. The bare loop too gives the device one step before it waits for the last.
    """
    import jax
    from absl import logging

    from taskpgm import training
    from taskpgm.training.metrics import read

    logging.set_verbosity(logging.ERROR)
    config, rows, length = decoder(shape, "lora")
    step, state, args = build(config, "lora", rows, length)

    def bare(steps, state):
        before = None
        for number in range(steps):
            if number == 1:
                start = time.perf_counter()
            state, metrics = step(state, *args)
            jax.block_until_ready(before)
            before = metrics
        jax.block_until_ready(before)
        return (time.perf_counter() - start) / (steps - 1), state

    once, state = bare(20, state)
    steps = max(20, 10 * int(seconds / rounds / once / 10))
    host = random_batch(config.vocab_size, rows, length)
    found = []
    for _ in range(rounds):
        alone, state = bare(steps, state)
        with tempfile.TemporaryDirectory() as folder:
            # As a new run: its first lines tell of steps from zero on.
            state = state.replace(step=jax.numpy.zeros_like(state.step))
            state = training.fit(
                step,
                state,
                lambda k: host,
                frozen=args[0],
                steps=steps,
                directory=folder,
                name="bench",
                log_every=10,
                checkpoint_every=steps // 2,
            )
            lines = [x for x in read(Path(folder) / "metrics.jsonl") if "tokens_per_second" in x]
        spent = statistics.mean(rows * length / x["tokens_per_second"] for x in lines)
        found.append((alone, spent, max(x["data_wait"] for x in lines)))
    bares, fits, waits = zip(*found, strict=True)
    return {
        "bare": statistics.median(bares),
        "fit": statistics.median(fits),
        "overhead": statistics.median(f / b - 1 for b, f in zip(bares, fits, strict=True)),
        "overheads": [f / b - 1 for b, f in zip(bares, fits, strict=True)],
        "steps": steps,
        "rounds": rounds,
        "checkpoints": 2,
        "data_wait": max(waits),
    }


def product(seconds):
    """GFLOP/s of the products of GPT-2 small at 1024 tokens, by XLA and by torch."""
    import jax
    import jax.numpy as jnp
    import torch

    out = {}
    for inner, outer in ((768, 768), (768, 3072), (3072, 768), (768, 50257), (2048, 2048)):
        a = np.random.default_rng(0).normal(size=(1024, inner)).astype(np.float32)
        b = np.random.default_rng(1).normal(size=(inner, outer)).astype(np.float32)
        x, y, dot = jnp.array(a), jnp.array(b), jax.jit(jnp.dot)
        u, v = torch.tensor(a), torch.tensor(b)
        flops = 2 * 1024 * inner * outer / 1e9
        xla, _ = timed(lambda: dot(x, y).block_until_ready(), seconds / 10)  # noqa: B023
        theirs, _ = timed(lambda: u @ v, seconds / 10)  # noqa: B023
        out[f"1024 x {inner} x {outer}"] = {"xla": flops / xla, "torch": flops / theirs}
    return out


MEASURES = {f.__name__: f for f in (ours, torch_loop, goodput, product)}


# --- All of them ---------------------------------------------------------------------------------
def measure(name, **arguments):
    """The result of a measurement made by a fresh process, or the last line of what it said."""
    command = [sys.executable, __file__, "--measure", name, json.dumps(arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    print(f"{name} {arguments} ...", end=" ", flush=True)
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"failed: {reason}")
        return {"failed": reason[:200]}
    result = json.loads(done.stdout.splitlines()[-1])
    print({k: f"{v:.4g}" for k, v in result.items() if isinstance(v, float)})
    return result


def everything(only, quick):
    import jax

    from taskpgm.training.flops import peak_flops

    there = jax.default_backend() != "cpu"
    seconds = 0.5 if quick else 20.0
    wanted = lambda name: not only or name.startswith(only)  # noqa: E731
    out = {}
    if wanted("product") and not quick:
        out["product"] = measure("product", seconds=seconds)
    peak = peak_flops()
    if peak is None and out.get("product"):
        peak = 1e9 * max(x for pair in out["product"].values() for x in pair.values())
    for shape in SHAPES:
        if not wanted(shape) or (quick and shape != "tiny"):
            continue
        for mode in ("full", "lora"):
            if shape in ACCELERATOR and not there:
                out[f"{shape} {mode}"] = {"taskpgm": None, "torch": None}
                continue
            sides = {
                "taskpgm": measure("ours", shape=shape, mode=mode, seconds=seconds),
                "torch": measure("torch_loop", shape=shape, mode=mode, seconds=seconds),
            }
            flops = sides["taskpgm"].get("flops_per_token")
            for side in sides.values():
                if peak and flops and "tokens_per_second" in side:
                    side["mfu"] = flops * side["tokens_per_second"] / peak
            out[f"{shape} {mode}"] = sides
    if wanted("group"):
        sizes, batch = ((1, 4), (2, 64)) if quick else ((1, 4, 12), SIDE_BY_SIDE)
        out["group"] = {
            shape: {
                g: measure("ours", shape=shape, mode="lora", seconds=seconds, group=g, batch=batch)
                for g in sizes
            }
            if there or shape not in ACCELERATOR
            else None
            for shape in ("tiny", *ACCELERATOR)
        }
    if wanted("depth"):
        out["depth"] = {
            n: measure("ours", shape="tiny", mode="full", seconds=0.1, layers=n) for n in (4, 32)
        }
    if wanted("goodput"):
        out["goodput"] = measure("goodput", shape="tiny", seconds=seconds)
    return out


def table(report):
    """The report as Markdown."""

    def number(x, key, form, scale=1.0):
        return form.format(x[key] * scale) if x and x.get(key) else "-"

    lines = [
        *header("Training steps", report["machine"]),
        "",
        "| shape, mode | side | tokens/s | MFU | compile, s | peak memory, GiB |",
        "|---|---|---|---|---|---|",
    ]
    results = report["results"]
    for name, sides in results.items():
        if not isinstance(sides, dict) or "torch" not in sides:
            continue
        for side, x in sides.items():
            if x is None or "failed" in x:
                why = "not measured" if x is None else f"failed: {x['failed']}"
                lines.append(f"| {name} | {side} | {why} | | | |")
                continue
            cells = [
                number(x, "tokens_per_second", "{:.0f}"),
                number(x, "mfu", "{:.1%}"),
                number(x, "compile_seconds", "{:.1f}"),
                number(x, "peak_bytes", "{:.2f}", 2**-30),
            ]
            lines.append(f"| {name} | {side} | " + " | ".join(cells) + " |")
    lines.append("")
    for shape, sizes in results.get("group", {}).items():
        if sizes is None:
            lines.append(f"- adapters of `{shape}` side by side: not measured")
            continue
        alone = next(iter(sizes.values())).get("tokens_per_second", float("nan"))
        for g, x in sizes.items():
            said = x.get("failed")
            if not said:
                rate = x["tokens_per_second"]
                said = f"{rate:.0f} tokens/s, {rate / alone:.2f} times one alone"
                said += f" ({x['rows']} x {x['length']} tokens each)"
            lines.append(f"- {g} adapters of `{shape}` side by side: {said}")
    for n, x in results.get("depth", {}).items():
        lines.append(f"- compile time with {n} layers: {x['compile_seconds']:.1f} s")
    if "goodput" in results:
        x = results["goodput"]
        lines.append(
            f"- a step in `fit` takes {x['overhead']:+.2%} more than the bare step of "
            f"{x['bare'] * 1e3:.0f} ms, by the median of {x['rounds']} rounds "
            f"({min(x['overheads']):+.2%} to {max(x['overheads']):+.2%}) of {x['steps']} steps and "
            f"{x['checkpoints']} checkpoints; data wait at most {x['data_wait']:.2%}"
        )
    for name, x in results.get("product", {}).items():
        lines.append(f"- product {name}: XLA {x['xla']:.0f}, torch {x['torch']:.0f} GFLOP/s")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "JSON"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURES[args.measure[0]](**json.loads(args.measure[1]))))
        return
    report = {
        "machine": machine(PACKAGES),
        "results": everything(args.only, args.quick),
    }
    text = table(report)
    print(text)
    if not args.quick:
        RESULTS.mkdir(exist_ok=True)
        name = "bench_train" + (f"_{args.only}" if args.only else "")
        (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / f"{name}.md").write_text(text)


if __name__ == "__main__":
    main()
