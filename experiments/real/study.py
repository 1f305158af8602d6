"""The real study, in sittings: what the protocol plans, with one launcher call after another.

    python experiments/real/model.py MODEL && python experiments/real/tasks.py DATA
    python experiments/real/study.py OUT --model MODEL --data DATA --mmlu MMLU --minutes 120
    python experiments/real/study.py OUT                # goes on from there
    python experiments/real/study.py OUT --workers 10   # by ten processes that share the work
    python experiments/real/study.py OUT --dry_run      # what is left, and what it costs

Needs the extra `eval`. DATA is what tasks.py makes, or any folder with suite/FAMILY/TASK.jsonl
(with .heldout and .test beside it) and bbh/TASK.jsonl; MMLU a folder of SUBJECT.jsonl with
question, choices, answer. Prepares OUT/tasks and OUT/benchmarks once, then runs the rows of
config.py in the order of the protocol, in one workdir, OUT/run, with the second budget as a sweep.
Whatever is killed goes on with the same command; `--minutes` ends a sitting by itself.
OUT/sittings.jsonl keeps the machine time. Weights of a model that has been judged are removed: 0.5
GB each. OUT/run/report is the page of what was asked for last; tables.py tells of all budgets.
"""

import argparse
import ast
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import BUDGETS, ROWS, SEEDS

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("config.py")
# How many of a family's tasks, by name: sentiment every second of 16, others the first ones.
EVERY = {"sentiment": 2}
FIRST = {"sentiment": 8, "arithmetic": 2, "time": 2, "units": 2}
BBH_ROWS, MMLU_ROWS = 8, 8  # of each task, and of each subject
SWARM, CONCENTRATIONS = 40, (0.3, 1.0, 5.0)  # random mixtures, to rank what predicts their loss
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{prompt}}}}"
doc_to_target: "{{{{response}}}}"
target_delimiter: ""
num_fewshot: 0
metric_list:
  - metric: perplexity
  - metric: acc
"""


def chosen_tasks(suite: Path) -> list[Path]:
    """The tasks of the study, as their training files: a rule over names, told in the protocol.

    Raises:
      SystemExit: there are none.
    """
    chosen = []
    for family in sorted(path for path in suite.glob("*") if path.is_dir()):
        names = sorted(p for p in family.glob("*.jsonl") if p.name.count(".") == 1)
        step = EVERY.get(family.name, 1)
        chosen += names[::step][: FIRST.get(family.name, 1)]
    if not chosen:
        raise SystemExit(f"error: {suite}: no FAMILY/TASK.jsonl in it: make it by tasks.py")
    return chosen


def first_rows(folder: Path, count: int) -> Iterator[dict]:
    """The first rows of every file, in the order of names."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for _, line in zip(range(count), file, strict=False):
                yield json.loads(line)


def question(row: dict) -> dict[str, str]:
    """A question of MMLU as prompt and response: the letter of the right choice."""
    texts = row["choices"]
    if isinstance(texts, str):  # as some copies have it
        texts = ast.literal_eval(texts)
    choices = [f"{letter}. {text}" for letter, text in zip("ABCD", texts, strict=True)]
    prompt = "\n".join([row["question"], *choices, "Answer:"])
    return {"prompt": prompt, "response": f" {'ABCD'[int(row['answer'])]}"}


def prepare(out: Path, data: Path, mmlu: Path | None) -> list[str]:
    """Writes OUT/tasks and OUT/benchmarks; the names of the benchmarks."""
    for path in chosen_tasks(data / "suite"):
        target = out / "tasks" / path.parent.name
        target.mkdir(parents=True, exist_ok=True)
        for split in ("", ".heldout", ".test"):
            shutil.copy(path.with_name(f"{path.stem}{split}.jsonl"), target)
    rows = {"real_bbh": list(first_rows(data / "bbh", BBH_ROWS))}
    if mmlu:
        rows["real_mmlu"] = [question(row) for row in first_rows(mmlu, MMLU_ROWS)]
    folder = (out / "benchmarks").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in rows.items():
        if not each:
            raise SystemExit(f"error: no rows for {name}: is its folder right?")
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in each))
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, rows=path))
    write_swarm(out)
    return list(rows)


def write_swarm(out: Path) -> None:
    """Writes the weights of the swarm's mixtures: Dirichlet of each concentration in turn."""
    names = [
        path.stem for path in sorted((out / "tasks").glob("*/*.jsonl")) if path.name.count(".") == 1
    ]
    rng = np.random.default_rng(0)
    (out / "swarm").mkdir(exist_ok=True)
    for k in range(SWARM):
        weights = rng.dirichlet(np.full(len(names), CONCENTRATIONS[k % len(CONCENTRATIONS)]))
        mixture = {name: round(float(w), 6) for name, w in zip(names, weights, strict=True)}
        (out / "swarm" / f"{k:02}.json").write_text(json.dumps(mixture, indent=1) + "\n")


def rows_of(part: str, out: Path) -> tuple[str, ...]:
    """The rows of `compare` in a part of the study."""
    if part == "swarm":
        return tuple(f"weights:file={path}" for path in sorted((out / "swarm").glob("*.json")))
    return tuple(ROWS)


class Call(NamedTuple):
    """One call of the launcher: which rows, how many seeds and budgets, and where it ends."""

    part: str
    seeds: int
    budgets: int = 1  # the first ones of config.BUDGETS
    last: str = ""

    def words(self, out: Path, settings: dict) -> list[str]:
        """The command line."""
        benchmarks = ",".join(f"'{name}'" for name in settings["benchmarks"])
        flags = [
            f"--config={CONFIG}",
            f"--config.compare={rows_of(self.part, out)}",
            f"--workdir={out / 'run'}",
            f"--config.base.path={settings['model']}",
            f"--config.tasks.source={out / 'tasks'}",
            f"--config.evaluation.harness=({benchmarks},)",
            f"--config.evaluation.harness_path={out / 'benchmarks'}",
            f"--config.train.seeds={self.seeds}",
        ]
        if self.budgets > 1:
            flags.append(f"--config.sweep.budget={BUDGETS[: self.budgets]}")
        if self.last:
            flags.append(f"--stage={self.last}")
        return [sys.executable, str(ROOT / "launch.py"), *flags]


def calls() -> list[Call]:
    """In the order of the protocol. The last one asks for all rows again, for the tables."""
    both = len(BUDGETS)
    return [
        Call("all", 1, last="mixture"),
        *(Call("all", seeds, 1) for seeds in range(1, SEEDS + 1)),
        *(Call("all", seeds, both) for seeds in range(1, SEEDS + 1)),
        Call("swarm", 1),
        Call("all", SEEDS, both),
    ]


def remove_judged(workdir: Path) -> None:
    """Removes weights and checkpoints of runs that have been judged, by test rows and then by the
    benchmarks; their marks stay."""
    for mark in workdir.glob("evaluation/harness/*/done.json"):
        name = mark.parent.name
        if not (workdir / "evaluation" / name / "done.json").is_file():
            continue
        run = workdir / "runs" / name
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        for file in run.glob("hf/*.safetensors"):
            file.unlink()


def sit(out: Path, call: Call, settings: dict, deadline: float | None, workers: int = 1) -> int:
    """Makes one call by so many processes, asks them to stop at the deadline, and notes what it
    took; the first exit code that is not 0."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    words = call.words(out, settings)
    if workers > 1:
        words.append("--shared")
        # Else the first process takes three quarters of a GPU's memory.
        environment.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    processes = [subprocess.Popen(words, cwd=ROOT, env=environment) for _ in range(workers)]
    try:
        for process in processes:
            process.wait(None if deadline is None else max(1.0, deadline - time.time()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for process in processes:
            process.send_signal(signal.SIGTERM)
    codes = [process.wait() for process in processes]  # every one of them: none is left behind
    code = next((code for code in codes if code), 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    note = {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime(start)),
        **call._asdict(),
        "workers": workers,
        "seconds": round(time.time() - start, 1),
        "cpu_seconds": round(cpu, 1),
        "exit": code,
    }
    with (out / "sittings.jsonl").open("a") as file:
        file.write(json.dumps(note) + "\n")
    return code


def main(out: Path, given: argparse.Namespace) -> int:
    out = out.resolve()
    path = out / "settings.json"
    if not path.is_file():
        if not (given.model and given.data):
            raise SystemExit(f"error: {out} is new: give --model and --data")
        names = prepare(out, given.data, given.mmlu)
        path.write_text(
            json.dumps({"model": str(given.model.resolve()), "benchmarks": names}) + "\n"
        )
    settings = json.loads(path.read_text())
    deadline = time.time() + 60 * given.minutes if given.minutes else None
    if given.dry_run:
        subprocess.run([*calls()[-1].words(out, settings), "--dry_run"], cwd=ROOT, check=True)
        return 0
    for call in calls():
        code = sit(out, call, settings, deadline, given.workers)
        if code:
            return code
        remove_judged(out / "run")
        if deadline and time.time() > deadline:
            return 75
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, help="the folder that model.py made")
    parser.add_argument("--data", type=Path, help="the folder that tasks.py made, or one like it")
    parser.add_argument("--mmlu", type=Path, help="a folder of MMLU-Redux, to judge by")
    parser.add_argument("--minutes", type=float, help="ends the sitting; the next one goes on")
    parser.add_argument("--workers", type=int, default=1, help="processes, as on one large GPU")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and its cost")
    arguments = parser.parse_args()
    sys.exit(main(arguments.out, arguments))
