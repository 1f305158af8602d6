"""What the study's workdir says, as experiments/results/real_study.{md,json} and two pictures.

    python experiments/real/tables.py OUT --machine "processor: 1 x H100; python: 3.12"

Needs only what OUT/run keeps for good: tasks.json, mixture/ and, of every model, the measures, the
benchmarks and the marks with their seconds. Rows are compared exactly as the launcher's own page
does (`taskpgm.evaluation.compare_runs`), which shows one budget at a time: here are all.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from scipy.stats import spearmanr

from config import BUDGETS, ROWS
from pictures import draw_differences, draw_ranks

sys.path[:0] = map(str, Path(__file__).resolve().parents[1:3])
from record import header  # noqa: E402
from taskpgm.evaluation import compare_runs  # noqa: E402

RESULTS = Path(__file__).resolve().parents[1] / "results"
AGAINST = ("uniform", "uniform-families")  # what every row is compared with
UNITS = ("tasks", "families")
BENCHMARKS = {"real_bbh": "BIG-Bench Hard", "real_mmlu": "MMLU-Redux"}


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def model(row: str, budget: int, seed: int) -> str:
    """A model's name in the workdir: the first budget and seed are not written."""
    name = row if budget == BUDGETS[0] else f"{row}@budget={budget}"
    return f"{name}.seed{seed}" if seed else name


class Study(NamedTuple):
    """A finished workdir: which tasks, of which family, and how many seeds all rows have."""

    run: Path
    families: dict[str, str]
    seeds: int
    judged: int  # seeds whose every model has its benchmarks

    def measures(self, row: str, budget: int, seed: int) -> dict[str, dict]:
        tasks = read(self.run / "evaluation" / model(row, budget, seed) / "measures.json")["tasks"]
        return {task: tasks[task] for task in self.families}

    def losses(self, budget: int) -> dict[str, list[dict[str, float]]]:
        """By row and seed, {task: nats per scored token}."""
        return {
            row: [
                {task: m["loss"] for task, m in self.measures(row, budget, seed).items()}
                for seed in range(self.seeds)
            ]
            for row in ROWS
        }

    def mean(self, values: dict[str, float], unit: str) -> float:
        """A mean over tasks, or over families of their tasks' means."""
        if unit == "tasks":
            return fmean(values.values())
        parts: dict[str, list[float]] = {}
        for task, value in values.items():
            parts.setdefault(self.families[task], []).append(value)
        return fmean(map(fmean, parts.values()))

    def benchmark(self, name: str, model_name: str) -> tuple[float, float]:
        """Of a model, nats an answer and the share of answers that are the greedy ones."""
        folder = self.run / "evaluation" / "harness" / model_name
        values = read(folder / "benchmarks.json")[name][name]
        return math.log(values["perplexity,none"]), values["acc,none"]

    def benchmarks(self, name: str, row: str, budget: int) -> list[tuple[float, float]]:
        """The same by seed."""
        return [self.benchmark(name, model(row, budget, seed)) for seed in range(self.judged)]

    def seconds(self, folder: str, row: str) -> float:
        """What the marks of a row's models say, all budgets and seeds that have one."""
        names = [model(row, b, s) for b in BUDGETS for s in range(self.seeds)]
        marks = [self.run / folder / name / "done.json" for name in names]
        return sum(read(mark)["seconds"] for mark in marks if mark.is_file())


def opened(run: Path) -> Study:
    """The study of a workdir.

    Raises:
      SystemExit: some row lacks a measure that all others have at seed 0.
    """
    families = {task["name"]: task["family"] for task in read(run / "tasks.json")["tasks"]}

    def whole(folder: str, file: str) -> int:
        names = ([model(row, b, seed) for row in ROWS for b in BUDGETS] for seed in range(1000))
        full = (all((run / folder / n / file).is_file() for n in each) for each in names)
        return next(seed for seed, is_full in enumerate(full) if not is_full)

    seeds = whole("evaluation", "measures.json")
    if not seeds:
        raise SystemExit(f"error: {run}: not every row has been judged yet: go on with study.py")
    return Study(run, families, seeds, min(seeds, whole("evaluation/harness", "done.json")))


def compared(study: Study, budget: int) -> dict[str, dict]:
    """For tasks and for families: every row's mean, its spread, its differences, its chance."""
    losses, found = study.losses(budget), {}
    for unit in UNITS:
        comparison = compare_runs(losses, study.families if unit == "families" else None)
        pairs: dict[tuple[str, str], list[float | None]] = {}
        for p in comparison.pairs:
            low, high = p.low, p.high
            pairs[p.first, p.second] = [p.difference, low, high]
            turned = [None if x is None else -x for x in (high, low)]
            pairs[p.second, p.first] = [-p.difference, *turned]
        rows = {}
        for row in comparison.ranked:
            own = [study.mean(seed, unit) for seed in losses[row]]
            rows[row] = {
                "loss": fmean(own),
                "sd": stdev(own) if len(own) > 1 else None,
                "best": comparison.best[row] if comparison.best else None,
                "against": {
                    other: pairs[row, other] for other in comparison.ranked if other != row
                },
            }
        found[unit] = rows
    return found


def verdict(pair: Sequence[float]) -> str:
    """What the protocol calls a difference with this interval."""
    return "wins" if pair[2] < 0 else "loses" if pair[1] > 0 else "not told apart"


def interval(pair: Sequence[float]) -> str:
    text = f"{pair[0]:+.3f} [{pair[1]:+.3f}, {pair[2]:+.3f}]"
    return text if verdict(pair) == "not told apart" else f"**{text}**"


def table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> list[str]:
    head = list(head)
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|"] + [
        f"| {' | '.join(row)} |" for row in rows
    ]


def spread(values: Sequence[float], form: str) -> str:
    many = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{fmean(values):{form}}{many}"


def report(study: Study, numbers: dict, machine: dict[str, str]) -> list[str]:
    weights = read(study.run / "mixture" / "weights.json")["mixtures"]
    lines = header("The real study", machine)
    kinds = len(set(study.families.values()))
    base = read(study.run / "evaluation" / "base" / "measures.json")["tasks"]
    untrained = {task: base[task]["loss"] for task in study.families}
    lines += ["", f"{len(study.families)} tasks of {kinds} families, {len(ROWS)} rows,"]
    lines += [f"{study.seeds} seeds. Test loss in nats per scored token; not fine-tuned:"]
    lines += [", ".join(f"{study.mean(untrained, unit):.4f} over {unit}" for unit in UNITS) + "."]
    lines += ["Bold: the 95% interval of the paired difference does not hold 0. Intervals are not"]
    lines += ["corrected for the number of pairs. Test rows and benchmarks chose nothing."]
    for budget in BUDGETS:
        for unit in UNITS:
            lines += ["", f"## {budget} examples, mean over {unit}", ""]
            rows = [
                [
                    f"`{row}`",
                    f"{at['loss']:.4f} ± {at['sd']:.3f}",
                    *(interval(at["against"][o]) if o != row else "–" for o in AGAINST),
                    f"{at['best']:.2f}",
                    f"{weights[model(row, budget, 0)]['effective']:.1f}",
                ]
                for row, at in numbers["compared"][str(budget)][unit].items()
            ]
            head = ["row", "loss ± sd over seeds", *(f"minus {o}" for o in AGAINST)]
            lines += table([*head, "chance of being best", "effective tasks"], rows)
    lines += ["", "## Predicted and measured", ""]
    for budget, (rho, p) in numbers["predicted"].items():
        lines += [f"- {budget} examples: Spearman {rho:.2f} over {len(ROWS)} rows (p = {p:.2f})"]
    for name, title in BENCHMARKS.items():
        nats, greedy = study.benchmark(name, "base")
        lines += ["", f"## {title}, {study.judged} seeds", ""]
        lines += [f"Not fine-tuned: {nats:.3f} nats an answer, {100 * greedy:.1f}% greedy.", ""]
        cells = {row: [study.benchmarks(name, row, budget) for budget in BUDGETS] for row in ROWS}
        rows = [
            [
                f"`{row}`",
                *(spread([x for x, _ in each], ".3f") for each in both),
                *(spread([100 * x for _, x in each], ".1f") for each in both),
            ]
            for row, both in cells.items()
        ]
        head = [f"nats an answer, {b}" for b in BUDGETS] + [f"greedy, %, {b}" for b in BUDGETS]
        lines += table(["row", *head], rows)
    lines += ["", f"## Exact match on 4 rows a task, {study.seeds} seeds", ""]
    rows = [
        [
            f"`{row}`",
            *(spread([100 * x for x in numbers["exact"][str(b)][row]], ".1f") for b in BUDGETS),
        ]
        for row in ROWS
    ]
    lines += table(["row", *(f"%, {b} examples" for b in BUDGETS)], rows)
    lines += ["", "## Seconds that each row's models took, all seeds and budgets", ""]
    parts = ("runs", "evaluation", "evaluation/harness")
    rows = [[f"`{row}`", *(f"{study.seconds(p, row):.0f}" for p in parts)] for row in ROWS]
    lines += table(["row", "training", "test rows", "benchmarks"], rows)
    choosing = read(study.run / "mixture" / "choosing.json")["parts"]
    lines += [""] + [f"- {part}: {at['seconds']:.1f} s" for part, at in choosing.items()]
    return lines


def collected(study: Study) -> dict:
    """All numbers: what the tables show, and every model's loss on every task."""
    weights = read(study.run / "mixture" / "weights.json")["mixtures"]
    numbers: dict = {"tasks": study.families, "compared": {}, "expected": {}, "predicted": {}}
    numbers |= {"exact": {}, "losses": {}}
    for budget in BUDGETS:
        key, losses = str(budget), study.losses(budget)
        numbers["compared"][key] = compared(study, budget)
        expected = {row: fmean(weights[model(row, budget, 0)]["predicted"]) for row in ROWS}
        measured = [numbers["compared"][key]["tasks"][row]["loss"] for row in ROWS]
        rank = spearmanr(list(expected.values()), measured)
        numbers["expected"][key] = expected
        numbers["predicted"][key] = [float(rank.statistic), float(rank.pvalue)]
        numbers["exact"][key] = {
            row: [
                fmean(m["exact_match"] for m in study.measures(row, budget, s).values())
                for s in range(study.seeds)
            ]
            for row in ROWS
        }
        numbers["losses"][key] = {
            row: [[each[task] for task in study.families] for each in seeds]
            for row, seeds in losses.items()
        }
    numbers["benchmarks"] = {
        name: {str(b): {row: study.benchmarks(name, row, b) for row in ROWS} for b in BUDGETS}
        for name in BENCHMARKS
    }
    return numbers


def rounded(value: Any) -> Any:
    """Five decimals are below what one rerun differs by."""
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    return round(value, 5) if isinstance(value, float) else value


def main(out: Path, said: str) -> None:
    study = opened(out / "run")
    lines = (line.split(": ", 1) for line in said.split("; ") if line)
    machine = {"command": "python experiments/real/tables.py OUT"} | {k: v for k, v in lines}
    numbers = collected(study)
    text = "\n".join(report(study, numbers, machine)) + "\n"
    (RESULTS / "real_study.md").write_text(text, encoding="utf-8")
    whole = json.dumps({"machine": machine} | rounded(numbers), separators=(",", ":"))
    (RESULTS / "real_study.json").write_text(whole.replace('],"', '],\n"') + "\n")
    draw_differences(numbers["compared"], RESULTS / "real_study.png")
    draw_ranks(
        numbers["expected"],
        numbers["compared"],
        numbers["predicted"],
        RESULTS / "real_study_predicted.png",
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--machine", default="", help='what to write on top, as "key: value; ..."')
    arguments = parser.parse_args()
    main(arguments.out, arguments.machine)
