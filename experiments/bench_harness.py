"""How fast are benchmarks of lm-evaluation-harness run, against the harness's own `hf` model?

    python experiments/bench_harness.py            # some minutes on 2 CPU cores
    python experiments/bench_harness.py --quick    # tiny shapes: does it run at all?

Needs the extra `dev`. Both sides run the same two local tasks through the harness, on the same
random Llama in float32, each in a process of its own: one like MMLU (a few-shot context, four
answers of one letter) and one of generation (greedy, a stop string). Time is that of the harness's
evaluation: ours compiles within it; a second evaluation in the same process shows what is left
without compiling. Imports and loading are not counted. The metrics of both sides have to be equal.
Writes experiments/results/bench_harness.json and .md.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import header, machine

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "torch", "transformers", "lm_eval")
SIDES = ("taskpgm", "hf")
TASKS = ("bench_choice", "bench_text")
NEW_TOKENS = 32


def make_world(folder: Path, width: int, layers: int, vocabulary: int, rows: int, shots: int):
    """A random model with a tokenizer, and two tasks made of Python's documentation."""
    import torch
    import transformers

    from taskpgm.tasks import corpus

    texts = [" ".join(text.split()) for text in corpus.documentation()]
    tokenizer = corpus.train_tokenizer(texts[:500], 2048)
    tokenizer.save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    rng = random.Random(0)

    def question() -> str:
        lines = [rng.choice(texts)[: rng.randrange(60, 160)]]
        lines += [f"{letter}. {rng.choice(texts)[:30]}" for letter in "ABCD"]
        return "\n".join([*lines, "Answer:"])

    choice = [
        {
            "q": "\n\n".join(f"{question()} {rng.choice('ABCD')}" for _ in range(shots))
            + f"\n\n{question()}",
            "a": rng.randrange(4),
        }
        for _ in range(rows)
    ]
    text = [{"q": rng.choice(texts)[: rng.randrange(200, 500)], "a": "x"} for _ in range(rows)]
    for name, part in (("choice", choice), ("text", text)):
        lines = "".join(json.dumps(row) + "\n" for row in part)
        (folder / f"{name}.jsonl").write_text(lines)
    common = (
        "task: bench_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {file}\n"
        "test_split: test\ndoc_to_text: '{{{{q}}}}'\nnum_fewshot: 0\ndoc_to_target: a\n"
    )
    (folder / "choice.yaml").write_text(
        common.format(name="choice", file=folder / "choice.jsonl")
        + "output_type: multiple_choice\ndoc_to_choice: ['A', 'B', 'C', 'D']\n"
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    (folder / "text.yaml").write_text(
        common.format(name="text", file=folder / "text.jsonl")
        + "output_type: generate_until\ngeneration_kwargs:\n  until: ['###']\n"
        f"  max_gen_toks: {NEW_TOKENS}\nmetric_list:\n  - metric: exact_match\n"
    )


def run_side(side: str, folder: Path, batch_size: int) -> dict:
    """Times of two evaluations of each task, its metrics, and what was answered."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    if side == "hf":
        from lm_eval.models.huggingface import HFLM

        model = HFLM(
            pretrained=str(folder / "model"), device="cpu", dtype="float32", batch_size=batch_size
        )
    else:
        from taskpgm.evaluation.benchmarks import harness_model
        from taskpgm.models import load_hf
        from taskpgm.tasks import load_tokenizer

        tokenizer = load_tokenizer(str(folder / "model"))
        model = harness_model(*load_hf(folder / "model"), tokenizer, batch_size=batch_size)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    measured = {}
    for task in TASKS:
        seconds, busy = [], []
        for _ in range(2):
            start, begun = time.perf_counter(), time.process_time()
            found = simple_evaluate(
                model, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=True
            )
            seconds.append(time.perf_counter() - start)
            busy.append(time.process_time() - begun)
        answers = [sample["filtered_resps"] for sample in found["samples"][task]]
        metrics = {k: v for k, v in found["results"][task].items() if isinstance(v, int | float)}
        measured[task] = {"seconds": seconds, "cpu": busy, "metrics": metrics, "answers": answers}
    return measured


def compare(results: dict) -> None:
    """Raises AssertionError where the two sides did not measure the same."""
    ours, theirs = (results[side] for side in SIDES)
    assert ours["bench_text"]["answers"] == theirs["bench_text"]["answers"]
    for mine, other in zip(
        ours["bench_choice"]["answers"], theirs["bench_choice"]["answers"], strict=True
    ):
        for (a, *_), (b, *_) in zip(mine, other, strict=True):
            assert abs(float(a) - float(b)) < 1e-3, (a, b)
    for task in TASKS:
        assert ours[task]["metrics"] == theirs[task]["metrics"], task


def report(results: dict, facts: dict, arguments: argparse.Namespace) -> str:
    lines = header("Benchmarks by lm-evaluation-harness, against its `hf` model", facts)
    lines += [
        f"- model: random Llama, {arguments.layers} layers of {arguments.width}, "
        f"{arguments.vocabulary} entries, float32; batches of {arguments.batch_size}",
        f"- tasks: {arguments.rows} questions with {arguments.shots} examples before each, four "
        f"answers of one letter; {arguments.rows} prompts, {NEW_TOKENS} new tokens, greedy",
        "",
        "The harness's evaluation, twice in one process; the first compiles. Likelihoods agree to "
        "1e-3 nats, generations letter for letter, metrics exactly. CPU seconds count all threads: "
        "on a machine that others use, they and the clock bound the truth from two sides.",
        "",
        "| task | seconds of | taskpgm, first | again | hf, first | again | times faster, first "
        "| again |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for key, name in (("seconds", "the clock"), ("cpu", "CPU")):
            ours, theirs = (results[side][task][key] for side in SIDES)
            cells = [*ours, *theirs, theirs[0] / ours[0], theirs[1] / ours[1]]
            shown = " | ".join(f"{x:.2f}" for x in cells)
            lines.append(f"| {task} | {name} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny shapes, nothing is written")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--shots", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=8)
    arguments = parser.parse_args()
    if arguments.quick:
        shapes = {"width": 32, "layers": 2, "vocabulary": 2100, "rows": 8, "shots": 1}
        vars(arguments).update(shapes)
    if arguments.side:
        found = run_side(arguments.side, arguments.folder, arguments.batch_size)
        (arguments.folder / f"{arguments.side}.json").write_text(json.dumps(found, default=str))
        return
    facts = machine(PACKAGES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_world(
            folder,
            arguments.width,
            arguments.layers,
            arguments.vocabulary,
            arguments.rows,
            arguments.shots,
        )
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "JAX_COMPILATION_CACHE_DIR": ""}
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--folder", name]
            command += ["--batch_size", str(arguments.batch_size)]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        results = {side: json.loads((folder / f"{side}.json").read_text()) for side in SIDES}
    compare(results)
    text = report(results, facts, arguments)
    print(text)
    if not arguments.quick:
        kept = {side: {task: results[side][task]["seconds"] for task in TASKS} for side in SIDES}
        (RESULTS / "bench_harness.md").write_text(text)
        (RESULTS / "bench_harness.json").write_text(
            json.dumps({"machine": facts, "seconds": kept}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
