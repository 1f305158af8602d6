"""How fast is scoring n x n, against what one would write with torch, scipy, transformers and peft?

    python experiments/bench_affinity.py            # everything, three minutes on 2 CPU cores
    python experiments/bench_affinity.py --quick    # tiny shapes: does it run at all?

Needs the extra `dev`. Writes experiments/results/bench_affinity.json, .md and
.png, with the machine, the versions and the command. All rows of one table come from one run, the
best of several repeats each. No GPU or TPU has been at hand.

  kernel   pairwise JSD of n = 32 models, t = 256 positions, v = 4096 entries
  memory   the peak of a process that does only that, above its inputs
  pmi      log-likelihoods of 12 LoRA models of a tiny Llama on 12 held-out sets, whole process
  scaling  the same against n = 4 .. 64, per cell
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# As launch.py sets it.
os.environ["XLA_FLAGS"] = f"--xla_cpu_prefer_vector_width=512 {os.environ.get('XLA_FLAGS', '')}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from record import header, machine  # noqa: E402

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "numpy", "torch", "scipy", "transformers", "peft")


def best(function, repeats: int) -> float:
    """Seconds of the fastest of several calls, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def some_log_probs(n: int, t: int, v: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(n, t, v)).astype(np.float32) * 3
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


# --- kernel --------------------------------------------------------------------------------------
def jsd_torch(log_probs):
    """Row by row, vectorised over the other models, entropies once: one logarithm an entry."""
    import torch

    p = log_probs.exp()
    entropy = torch.xlogy(p, p).sum(-1).mean(-1)
    out = torch.zeros(len(p), len(p))
    for i in range(len(p) - 1):
        m = (p[i] + p[i + 1 :]).mul_(0.5)
        out[i, i + 1 :] = 0.5 * (entropy[i] + entropy[i + 1 :]) - torch.xlogy(m, m).sum(-1).mean(-1)
    return out


def jsd_torch_kl(log_probs):
    """Row by row through torch's own kl_div, as the definition reads."""
    import torch
    from torch.nn.functional import kl_div

    out = torch.zeros(len(log_probs), len(log_probs))
    for i in range(len(log_probs) - 1):
        a, b = log_probs[i].expand_as(log_probs[i + 1 :]), log_probs[i + 1 :]
        m = torch.logaddexp(a, b).sub_(np.log(2.0))
        both = [kl_div(m, x, log_target=True, reduction="none").sum(-1) for x in (a, b)]
        out[i, i + 1 :] = 0.5 * (both[0] + both[1]).mean(-1)
    return out


def jsd_scipy(p, rows):
    from scipy.special import rel_entr

    out = np.zeros((rows, len(p)))
    for i in range(rows):
        m = 0.5 * (p[i] + p[i + 1 :])
        both = rel_entr(p[i], m).sum(-1) + rel_entr(p[i + 1 :], m).sum(-1)
        out[i, i + 1 :] = 0.5 * both.mean(-1)
    return out


def bench_kernel(n: int, t: int, v: int) -> dict:
    """Nanoseconds for each (pair, position, vocabulary entry)."""
    import torch

    from taskpgm.affinity import jensen_shannon, jsd

    torch.set_num_threads(os.cpu_count())
    x = some_log_probs(n, t, v)
    entries = n * (n - 1) / 2 * t * v
    ours, weights = jnp.asarray(x), jnp.full((1, t), 1 / t)
    there = torch.from_numpy(x)
    seconds = {
        "taskpgm": best(lambda: jsd.pairwise(ours, weights).block_until_ready(), 5) / entries,
        "torch, one logarithm an entry": best(lambda: jsd_torch(there), 2) / entries,
        "torch, kl_div": best(lambda: jsd_torch_kl(there), 1) / entries,
    }
    p, rows = np.exp(x), 2
    seconds["scipy rel_entr"] = best(lambda: jsd_scipy(p, rows), 1) / (
        sum(n - 1 - i for i in range(rows)) * t * v
    )
    want = jsd_torch_kl(there).numpy()
    apart = np.abs(jensen_shannon(x) - (want + want.T)).max()
    assert apart < 1e-5, f"ours and torch's are {apart} apart"
    return {
        "shape": [n, t, v],
        "ns per entry": {k: s * 1e9 for k, s in seconds.items()},
        "times faster": {k: s / seconds["taskpgm"] for k, s in seconds.items()},
        "largest difference to torch": float(apart),
    }


# --- memory --------------------------------------------------------------------------------------
def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_child(n: int, t: int, v: int) -> None:
    """Runs alone: the process's peak with the inputs in place, before and after the reduction."""
    from taskpgm.affinity import jsd

    # Uniform, made in place: a temporary copy would hide what comes later.
    x = jnp.full((n, t, v), -np.log(v), jnp.float32).block_until_ready()
    weights = jnp.full((1, t), 1 / t)
    run = jsd.pairwise.lower(x, weights).compile()
    before = peak()
    run(x, weights).block_until_ready()
    print(json.dumps({"inputs": x.nbytes, "before": before, "after": peak()}))


def bench_memory(n: int, t: int, v: int) -> dict:
    command = [sys.executable, __file__, "--child", f"{n},{t},{v}"]
    out = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    out["above inputs"] = (out["after"] - out["before"]) / out["inputs"]
    return out


# --- pmi -----------------------------------------------------------------------------------------
def a_world(folder: Path, n: int, examples: int, width: int, layers: int, length: int):
    """A random tiny Llama and n adapters, as transformers and peft have them on disk, and tasks."""
    import dataclasses

    from taskpgm import models

    config = models.DecoderConfig.from_hf(
        {
            "model_type": "llama",
            "vocab_size": 2048,
            "hidden_size": width,
            "intermediate_size": 11 * width // 4,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5,
        }
    )
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    config = dataclasses.replace(config, lora=models.LoraConfig(rank=8, targets=targets))
    params = models.init_params(config, jax.random.key(0))
    models.save_hf(folder / "base", dataclasses.replace(config, lora=None), params)
    rng = np.random.default_rng(0)
    zero = models.init_lora(config, jax.random.key(1))
    for i in range(n):
        lora = jax.tree.map(lambda x: np.asarray(x) + 0.05 * rng.normal(size=x.shape), zero)
        models.save_peft(folder / f"adapter{i}", config, lora, str(folder / "base"))
    tasks = []
    for _ in range(n):
        ids = [rng.integers(1, 2048, rng.integers(length // 4, length)) for _ in range(examples)]
        tasks.append([(x.astype(np.int32), len(x) // 2) for x in ids])
    return config, tasks


def packed(tasks, length: int):
    from taskpgm.tasks import pack
    from taskpgm.tasks.tokenize import Encoded

    rows = []
    for task in tasks:
        scored = [np.arange(len(ids)) >= prompt for ids, prompt in task]
        index = np.arange(len(task), dtype=np.int32)
        rows.append(pack(Encoded([ids for ids, _ in task], scored, index, 0, 0), length))
    return rows


def load_ours(folder: Path, config, n: int):
    """(base, adapters stacked), from files; the adapters wait on the host, as in the pipeline."""
    from taskpgm import models

    _, params = models.load_hf(folder / "base")
    loras = [models.load_peft(folder / f"adapter{i}", config)[1] for i in range(n)]
    return params, jax.tree.map(lambda *x: np.stack(x), *loras)


def score_ours(config, params, loras, tasks, length: int) -> np.ndarray:
    """Log-likelihoods [n m] as the pipeline takes them; the store is new."""
    from taskpgm import affinity

    with tempfile.TemporaryDirectory() as store:
        scores = affinity.compute_scores(
            config,
            params,
            lambda some: jax.device_put(jax.tree.map(lambda x: x[np.asarray(some)], loras)),
            packed(tasks, length),
            [len(task) for task in tasks],
            model_keys=[str(i) for i in range(len(tasks))],
            folder=store,
            memory=2**30,
            batch_size=8,
            contexts=None,
        )
    return scores.log_likelihood


def score_transformers(folder: Path, tasks, batch_size: int = 8) -> np.ndarray:
    """The loop: load a model, score every held-out set in batches padded to their longest."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count())
    rows = []
    for i in range(len(tasks)):
        model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        model = PeftModel.from_pretrained(model, folder / f"adapter{i}").eval()
        said = []
        for task in tasks:
            order = sorted(range(len(task)), key=lambda e: len(task[e][0]))
            value = np.zeros(len(task))
            for at in range(0, len(order), batch_size):
                some = order[at : at + batch_size]
                longest = max(len(task[e][0]) for e in some)
                ids = torch.zeros(len(some), longest, dtype=torch.long)
                mask = torch.zeros_like(ids)
                for row, e in enumerate(some):
                    ids[row, : len(task[e][0])] = torch.from_numpy(task[e][0])
                    mask[row, : len(task[e][0])] = 1
                with torch.inference_mode():
                    said_all = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
                    target = said_all[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].double()
                for row, e in enumerate(some):
                    x, prompt = task[e]
                    value[e] = target[row, prompt - 1 : len(x) - 1].sum()
            said.append(value)
        rows.append(np.concatenate(said))
    return np.array(rows)


def clock(function) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def bench_pmi(n: int, examples: int, width: int, layers: int, length: int = 128) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        config, tasks = a_world(Path(folder), n, examples, width, layers, length)
        score_transformers(Path(folder), tasks[:1])  # imports are not counted on either side

        def ours_from_files():
            return score_ours(config, *load_ours(Path(folder), config, n), tasks, length)

        ours, a = clock(ours_from_files)
        again, _ = clock(ours_from_files)
        theirs, b = clock(lambda: score_transformers(Path(folder), tasks))
    apart = np.abs(a / b - 1).max()
    assert apart < 1e-4, f"log-likelihoods are {apart} apart"
    return {
        "n": n,
        "examples of a task": examples,
        "tokens": sum(len(x) for task in tasks for x, _ in task),
        "seconds": {
            "taskpgm, compilation included": ours,
            "taskpgm, compiled": again,
            "transformers + peft, one after the other": theirs,
        },
        "times faster": {"compilation included": theirs / ours, "compiled": theirs / again},
        "largest relative difference": float(apart),
    }


def bench_scaling(sizes: list[int], examples: int) -> dict:
    """Seconds for each cell (model, task): compiled, models in memory, cells stored."""
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        config, tasks = a_world(Path(folder), max(sizes), examples, 64, 2, 64)
        params, loras = load_ours(Path(folder), config, max(sizes))
    for n in sizes:
        some = jax.tree.map(lambda x, n=n: x[:n], loras)
        seconds[n] = best(lambda n=n, x=some: score_ours(config, params, x, tasks[:n], 64), 3)
    return {"seconds": seconds, "ms per cell": {n: s / n**2 * 1e3 for n, s in seconds.items()}}


# --- the record ----------------------------------------------------------------------------------
def table(out: dict) -> str:
    kernel, pmi, scaling = out["kernel"], out["pmi"], out["scaling"]
    lines = header("Scoring n x n", out["machine"])
    lines += ["", f"## Pairwise JSD, n, t, v = {kernel['shape']}", ""]
    lines += ["| | ns per (pair, entry) | taskpgm is faster by |", "|---|---|---|"]
    lines += [
        f"| {k} | {ns:.3f} | {kernel['times faster'][k]:.1f} |"
        for k, ns in kernel["ns per entry"].items()
    ]
    lines += ["", f"Peak memory above the inputs: {out['memory']['above inputs']:.1%} of them.", ""]
    lines += [f"## Log-likelihoods of {pmi['n']} models on {pmi['n']} held-out sets", ""]
    lines += [f"{pmi['tokens']:,} tokens each, from files on.", "", "| | seconds |", "|---|---|"]
    lines += [f"| {k} | {s:.1f} |" for k, s in pmi["seconds"].items()]
    faster = ", ".join(f"{x:.1f} ({k})" for k, x in pmi["times faster"].items())
    lines += ["", f"Faster by {faster}."]
    lines += ["", "## Cost of a cell (model, task)", "", "| n | ms per cell |", "|---|---|"]
    lines += [f"| {n} | {ms:.2f} |" for n, ms in scaling["ms per cell"].items()]
    return "\n".join(lines)


def plot(scaling: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    n = [int(x) for x in scaling["ms per cell"]]
    axes.plot(n, list(scaling["ms per cell"].values()), "o-")
    axes.set(xscale="log", xlabel="models and tasks, n", ylabel="ms per cell (model, task)", ylim=0)
    axes.set_xticks(n, [str(x) for x in n])
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes, nothing recorded")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        memory_child(*map(int, args.child.split(",")))
        return
    shape = (6, 8, 512) if args.quick else (32, 256, 4096)
    out = {"machine": machine(PACKAGES)}
    out["kernel"] = bench_kernel(*shape)
    out["memory"] = bench_memory(*shape)
    out["pmi"] = bench_pmi(*((3, 4, 32, 1) if args.quick else (12, 48, 128, 4)))
    out["scaling"] = bench_scaling([2, 4] if args.quick else [4, 8, 16, 32, 64], 16)
    print(table(out))
    if not args.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "bench_affinity.json").write_text(json.dumps(out, indent=1) + "\n")
        (RESULTS / "bench_affinity.md").write_text(table(out))
        plot(out["scaling"], RESULTS / "bench_affinity.png")


if __name__ == "__main__":
    main()
