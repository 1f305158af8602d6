"""How fast do n runs on mixtures train side by side in one program, against one after the other?

    python experiments/bench_runs.py                    # minutes on 2 CPU cores, or on one GPU
    python experiments/bench_runs.py --runs 17,51       # how many side by side
    python experiments/bench_runs.py --quick            # tiny shapes: does it run at all?

Both ways in one process, with the same step and the same batches, turn by turn, so that a machine
that gets slower does so for both. Seconds are those of training steps, the least of all rounds;
compiling is told apart. `lora` trains adapters beside one base, `full` a copy of all weights for
each run. On a GPU the shape is SmolLM2-135M's in bfloat16, with random weights; on a CPU the demo's
base. What a GPU cannot hold is said and left out. Writes bench_runs_BACKEND.json and .md into
experiments/results; the default of `train.group` follows from them.
"""

import argparse
import dataclasses
import gc
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from record import header, machine
from taskpgm import models, training

RESULTS = Path(__file__).parent / "results"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# hidden, intermediate, layers, heads, KV heads, vocabulary; dtype of activations and weights;
# rows of a step, their length.
SHAPES = {
    "tiny": ((32, 64, 1, 2, 1, 128), "float32", "float32", 2, 16),
    "demo": ((96, 256, 3, 4, 2, 1024), "float32", "float32", 16, 128),
    "smollm2": ((576, 1536, 30, 9, 3, 49152), "bfloat16", "float32", 8, 128),
}


def decoder(shape: str, mode: str) -> models.DecoderConfig:
    (hidden, inner, layers, heads, kv_heads, vocabulary), dtype, param_dtype, _, length = SHAPES[
        shape
    ]
    config = models.DecoderConfig.from_hf(
        {
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": inner,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "max_position_embeddings": max(512, length),
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        }
    )
    lora = models.LoraConfig(rank=8, alpha=16.0, targets=TARGETS) if mode == "lora" else None
    return dataclasses.replace(config, dtype=dtype, param_dtype=param_dtype, lora=lora)


def batches_of(run: int, steps: int, shape: str) -> list[dict[str, np.ndarray]]:
    """Rows of one segment each, half of whose tokens are scored."""
    (*_, vocabulary), _, _, rows, length = SHAPES[shape]
    rng = np.random.default_rng(run)
    tokens = rng.integers(0, vocabulary, (steps, rows, length + 1), dtype=np.int32)
    place = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    fixed = {
        "positions": place,
        "segment_ids": np.ones((rows, length), np.int32),
        "weights": (place >= length // 2).astype(np.float32),
    }
    return [{"tokens": x[:, :-1], "targets": x[:, 1:], **fixed} for x in tokens]


class Way:
    """n runs, `side` of them in one program."""

    def __init__(self, config: models.DecoderConfig, params: Any, n: int, side: int, shape: str):
        self.side, self.frozen = side, params if config.lora else None
        self.optimizer = training.make_optimizer({"lr": 1e-3})
        start = models.init_lora(config, jax.random.key(1)) if config.lora else params
        self.start = jax.tree.map(np.asarray, start)
        self.config, self.parts = config, [range(at, at + side) for at in range(0, n, side)]
        self.shape = shape

    def train(self, steps: int) -> tuple[float, list[float]]:
        """Seconds of all runs' steps, without what is done before the first; the last losses."""
        seconds, losses = 0.0, []
        for part in self.parts:
            state, step = self.begin()
            data = [batches_of(run, steps, self.shape) for run in part]
            alone = self.side == 1
            keys = jax.random.key(0) if alone else jax.random.split(jax.random.key(0), self.side)
            total = jnp.int32(steps) if alone else jnp.full(self.side, steps, jnp.int32)
            placed = [
                training.put_batch(data[0][k])
                if alone
                else training.put_batch({x: np.stack([d[k][x] for d in data]) for x in data[0][0]})
                for k in range(steps)
            ]
            jax.block_until_ready((state, placed))
            metrics: Any = None
            began = time.perf_counter()
            for batch in placed:
                state, metrics = step(state, self.frozen, batch, keys, total)
            jax.block_until_ready((state, metrics))
            seconds += time.perf_counter() - began
            losses += np.atleast_1d(np.asarray(metrics["loss"], np.float64)).tolist()
        return seconds, losses

    def begin(self) -> tuple[training.TrainState, Callable]:
        if self.side == 1:
            first = self.start
        else:
            spread = lambda x: np.broadcast_to(x, (self.side, *x.shape))  # noqa: E731
            first = jax.tree.map(spread, self.start)
        first = jax.tree.map(lambda x: jax.device_put(np.asarray(x)), first)
        state = training.create_state(self.optimizer, first, group=self.side > 1)
        return state, training.make_train_step(self.config, self.optimizer, state)


def compare(shape: str, mode: str, n: int, steps: int, rounds: int) -> dict[str, Any]:
    """n runs both ways."""
    config = decoder(shape, mode)
    params = models.init_params(config, jax.random.key(0))
    ways = {"one after the other": Way(config, params, n, 1, shape)}
    ways["side by side"] = Way(config, params, n, n, shape)
    if mode == "full":
        del params
    compiled, seconds, losses = {}, {name: [] for name in ways}, {}
    for name, way in ways.items():
        way.parts, kept = way.parts[:1], way.parts
        began = time.perf_counter()
        way.train(1)
        compiled[name] = time.perf_counter() - began
        way.parts = kept
    for _ in range(rounds):
        for name, way in ways.items():
            took, losses[name] = way.train(steps)
            seconds[name].append(took)
    first, second = (np.array(losses[name]) for name in ways)
    best = {name: min(took) for name, took in seconds.items()}
    return {
        "shape": shape,
        "mode": mode,
        "runs": n,
        "steps": steps,
        "seconds": seconds,
        "first call, seconds": compiled,
        "times faster": best["one after the other"] / best["side by side"],
        "largest relative difference of the last losses": float(np.abs(second / first - 1).max()),
    }


def measured(
    shapes: Sequence[str], modes: Sequence[str], runs: Sequence[int], steps: int, rounds: int
) -> list[dict[str, Any]]:
    found = []
    for shape in shapes:
        for mode in modes:
            for n in runs:
                try:
                    found.append(compare(shape, mode, n, steps, rounds))
                    print(line(found[-1]), flush=True)
                except Exception as error:  # XLA's own, where memory does not suffice
                    if "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    found.append({"shape": shape, "mode": mode, "runs": n, "problem": "no memory"})
                    print(line(found[-1]), flush=True)
                gc.collect()
    return found


def line(r: dict[str, Any]) -> str:
    """A row of the table."""
    head = f"| {r['shape']} | {r['mode']} | {r['runs']} |"
    if "problem" in r:
        return f"{head} {r['problem']} | | | |"
    apart, each = r["largest relative difference of the last losses"], r["seconds"]
    told = [f"{min(each[name]) / r['steps'] / r['runs'] * 1e3:.2f}" for name in each]
    return f"{head} {told[0]} | {told[1]} | **{r['times faster']:.2f}** | {apart:.1e} |"


def table(report: dict[str, Any]) -> str:
    lines = header("Runs side by side", report["machine"])
    lines += [
        "",
        "| shape | mode | runs | one after the other, ms a step | side by side, ms a run's step | "
        "times faster | losses differ by at most |",
        "|---|---|---|---|---|---|---|",
        *map(line, report["results"]),
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    backend = jax.default_backend()
    on_cpu = backend == "cpu"
    parser.add_argument("--quick", action="store_true", help="tiny shapes, nothing recorded")
    parser.add_argument("--shape", default="demo" if on_cpu else "smollm2", choices=list(SHAPES))
    parser.add_argument("--modes", default="lora,full")
    parser.add_argument("--runs", default="3,9" if on_cpu else "3,17")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3 if on_cpu else 2)
    args = parser.parse_args()
    modes, runs = args.modes.split(","), [int(n) for n in args.runs.split(",")]
    report: dict[str, Any] = {"machine": machine(("jax", "flax", "optax"))}
    if args.quick:
        report["results"] = measured(["tiny"], modes, [3], steps=3, rounds=1)
        print(table(report))
        return
    report["results"] = measured([args.shape], modes, runs, args.steps, args.rounds)
    print(table(report))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"bench_runs_{backend}.json").write_text(json.dumps(report, indent=1) + "\n")
    (RESULTS / f"bench_runs_{backend}.md").write_text(table(report))


if __name__ == "__main__":
    main()
