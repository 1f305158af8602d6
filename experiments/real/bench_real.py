"""How fast are training, scoring and judging on a real vocabulary, against transformers and peft?

    python experiments/real/model.py MODEL && python experiments/real/tasks.py DATA
    python experiments/real/bench_real.py MODEL DATA            # ten minutes on 2 CPU cores
    python experiments/real/bench_real.py MODEL DATA --quick    # minutes; nothing recorded

Needs the extra `torch`. SmolLM2-135M (49,152 entries, embeddings tied) with LoRA of rank 8 on all
matrices, on rows of the suite. Each number comes from a process of its own, which also tells its
peak memory. Tokens are those of examples: padding counts for nobody. The table tells how far apart
losses, log-likelihoods and answers are. Writes experiments/results/bench_real.json and .md.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

os.environ["XLA_FLAGS"] = f"--xla_cpu_prefer_vector_width=512 {os.environ.get('XLA_FLAGS', '')}"

import numpy as np  # noqa: E402

import bench_ours as sides  # noqa: E402
import bench_theirs  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
from record import header, machine  # noqa: E402

RESULTS = Path(__file__).parents[1] / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "peft")
# One task of each: short and long rows, one scored token and many.
TASKS = (
    "sentiment/multiemo-hotels_sentence_en",
    "arithmetic/arithmetic-2_digit_addition",
    "science/subtask038_qasc_combined_fact",
    "bias/bbq_lite_json-age_ambig",
)
SIDES = {
    "training": ("train_ours", "train_theirs"),
    "log-likelihoods, n x n": ("pmi_ours", "pmi_theirs"),
    "with JSD, n x n": ("jsd_ours", "products"),
    "judging": ("evaluate_ours", "evaluate_theirs"),
}


def make_world(folder: Path, model: Path, data: Path, n: int, steps: int, rows: int) -> None:
    """Writes a world (see bench_ours.py); the adapters are random, and small."""
    import jax

    from taskpgm import models, tasks, training

    (folder / "base").symlink_to(model.resolve())
    config, _ = models.load_hf(model)
    lora = models.LoraConfig(rank=8, alpha=16.0, targets=sides.TARGETS)
    config = replace(config, lora=lora)
    start = models.init_lora(config, jax.random.key(0))
    models.save_peft(folder / "start", config, start, str(model))
    rng = np.random.default_rng(0)
    for i in range(n):
        own = jax.tree.map(lambda x: np.asarray(x) + 0.01 * rng.normal(size=x.shape), start)
        models.save_peft(folder / f"adapter{i}", config, own, str(model))
    tokenizer, packed, examples = tasks.load_tokenizer(model), [], []
    for name in TASKS[:n]:
        path = data / "suite" / f"{name}.jsonl"
        lines = path.with_suffix(".heldout.jsonl").read_text(encoding="utf-8").splitlines()
        encoded = encode(tokenizer, lines[:rows])
        examples.append(
            [
                [ids.tolist(), int(np.flatnonzero(scored)[0])]
                for ids, scored in zip(encoded.ids, encoded.scored, strict=True)
            ]
        )
        lines = path.read_text(encoding="utf-8").splitlines()
        stream = tasks.stream(
            [tasks.pack(encode(tokenizer, lines), sides.LENGTH)], batch_size=sides.ROWS, seed=0
        )
        packed.append([stream[k] for k in range(steps)])
    fields = {f: np.stack([[b[f] for b in task] for task in packed]) for f in sides.FIELDS}
    np.savez(folder / "train.npz", **fields)
    (folder / "heldout.json").write_text(json.dumps(examples))
    rate = training.make_optimizer(sides.OPTIMIZER).learning_rate
    np.save(folder / "rates.npy", np.array([rate(k, steps) for k in range(steps)], np.float64))


def encode(tokenizer, lines: list[str]):
    from taskpgm import tasks

    rows = [json.loads(line) for line in lines]
    examples = [tasks.Example(row["prompt"], row["response"]) for row in rows]
    return tasks.encode(tokenizer, examples, sides.LENGTH)


def measure(side: str, folder: Path) -> dict:
    """What one side says, measured in a process of its own, and that process's peak in bytes."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--side", side, str(folder)]
    subprocess.run(command, check=True, env=environment)
    return json.loads((folder / f"{side}.json").read_text())


def flat(value) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in value])


def apart(ours, theirs) -> float:
    """The largest relative difference."""
    a, b = flat(ours), flat(theirs)
    return float(np.abs(a / b - 1).max())


def row(ours: dict, theirs: dict, tokens: int, **facts) -> dict:
    """One line: seconds of both sides, by the clock and of all cores, and their ratios."""
    return {
        "seconds": [ours["seconds"], theirs["seconds"]],
        "cpu seconds": [ours["cpu"], theirs["cpu"]],
        "first": [ours["first"], theirs["first"]],
        "tokens": tokens,
        "times faster": theirs["seconds"] / ours["seconds"],
        "times less work": theirs["cpu"] / ours["cpu"],
        **facts,
    }


def bench(model: Path, data: Path, n: int, steps: int, rows: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_world(folder, model, data, n, steps, rows)
        found = {what: [measure(side, folder) for side in pair] for what, pair in SIDES.items()}
        train = np.load(folder / "train.npz")["segment_ids"] > 0
        trained = int(train[:, 1:].sum())
        heldout = sides.heldout(folder)
    read = sum(len(ids) for task in heldout for ids, _ in task)
    out = {}
    for what, pair in found.items():
        ours, theirs = (side["result"] for side in pair) if what == "judging" else pair
        peak = {"peak": [side["peak"] for side in pair]}
        if what == "judging":
            same = np.mean(
                [
                    a == b
                    for a, b in zip(
                        ours["generation"]["result"], theirs["generation"]["result"], strict=True
                    )
                ]
            )
            loss = apart(ours["loss"]["result"], theirs["loss"]["result"])
            out["loss of a model"] = row(ours["loss"], theirs["loss"], read, apart=loss, **peak)
            written = len(ours["generation"]["result"]) * sides.NEW_TOKENS
            out["answers, greedy"] = row(
                ours["generation"], theirs["generation"], written, same=float(same), **peak
            )
        elif what == "training":
            difference = apart(ours["result"], theirs["result"])
            out[what] = row(ours, theirs, trained, apart=difference, **peak)
        elif theirs["result"] is None:
            out[what] = row(ours, theirs, n * read, peak=[peak["peak"][0], None])
        else:
            difference = apart(ours["result"], theirs["result"])
            out[what] = row(ours, theirs, n * read, apart=difference, **peak)
    return out | {"n": n, "steps": steps, "held-out examples": rows}


def table(report: dict) -> str:
    result = report["result"]
    lines = header("On a real vocabulary", report["machine"])
    lines += [
        "",
        f"SmolLM2-135M, float32, LoRA of rank 8 on all matrices; {result['n']} tasks of the suite, "
        f"{result['steps']} steps of {sides.ROWS} x {sides.LENGTH} tokens each, "
        f"{result['held-out examples']} held-out examples of each. Seconds without loading, the "
        "first step or round left out; those of all cores tell more on a machine that others use. "
        "The other side has a row for each example.",
        "",
        "| | ours, s | theirs, s | times faster | CPU s, ours | theirs | times less | "
        "tokens a CPU s, ours | theirs | peak, GiB | theirs | apart |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for what, x in result.items():
        if not isinstance(x, dict):
            continue
        (ours, theirs), (here, there) = x["seconds"], x["cpu seconds"]
        peaks = ["" if p is None else f"{p / 2**30:.2f}" for p in x["peak"]]
        apart = f"{x['apart']:.1e}" if "apart" in x else ""
        apart = f"{x['same']:.0%} the same" if "same" in x else apart
        lines.append(
            f"| {what} | {ours:.1f} | {theirs:.1f} | {x['times faster']:.2f} | {here:.1f} | "
            f"{there:.1f} | {x['times less work']:.2f} | {x['tokens'] / here:.0f} | "
            f"{x['tokens'] / there:.0f} | {peaks[0]} | {peaks[1]} | {apart} |"
        )
    lines += [
        "",
        "*With JSD* is compared with the bare matrix products of the same forward passes by the "
        "same library, so its last ratio is the share of the time that they are.",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", help="the folder that model.py made")
    parser.add_argument("data", type=Path, nargs="?", help="the folder that tasks.py made")
    parser.add_argument("--quick", action="store_true", help="two tasks, nothing recorded")
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side, folder = args.side
        where = bench_theirs if hasattr(bench_theirs, side) else sides
        found = getattr(where, side)(Path(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        wrapped = {"result": found} if side.startswith("evaluate") else found
        (Path(folder) / f"{side}.json").write_text(json.dumps(wrapped | {"peak": peak}))
        return
    if not args.model or not args.data:
        parser.error("MODEL and DATA are needed: see --help")
    size = {"n": 2, "steps": 3, "rows": 8} if args.quick else {"n": 4, "steps": 5, "rows": 24}
    facts = machine(PACKAGES) | {"command": "python experiments/real/bench_real.py MODEL DATA"}
    report = {"machine": facts, "result": bench(args.model, args.data, **size)}
    print(table(report))
    if not args.quick:
        (RESULTS / "bench_real.json").write_text(json.dumps(report, indent=1) + "\n")
        (RESULTS / "bench_real.md").write_text(table(report))


if __name__ == "__main__":
    main()
