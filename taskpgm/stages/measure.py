"""Stages `evaluation` and `report`: what each mixture was worth, and the page that shows it."""

import time
from collections.abc import Iterable
from typing import Any

from taskpgm import evaluation, report, tasks
from taskpgm.multihost import on_primary
from taskpgm.stages import workdir as wd
from taskpgm.stages.context import Context, Source, on_mesh, say
from taskpgm.stages.runs import planned_runs, run_folder


@on_mesh
def evaluation_stage(context: Context) -> None:
    """Measures the base and the model of every mixture on all test examples.

    Each model's measures are kept in evaluation/NAME/, so that one more mixture costs one more
    evaluation.
    """
    families = {task.name: task.family for task in context.tasks}
    base = measured_model(context, "base", context.base)
    measured: dict[str, list[dict]] = {}
    facts = {}
    for run in planned_runs(context):
        folder = run_folder(context, run)
        key = wd.done_key(folder)
        if key is None:
            raise ValueError(f"{folder} holds no finished run: run the stage `runs` first")
        one = measured_model(context, run.name, Source(folder / "hf", key))
        measured.setdefault(run.mixture, []).append(one)
        done = wd.read_json(folder / wd.MARK)
        facts[run.mixture] = {k: done[k] for k in ("steps", "epochs", "examples", "seconds")}
    first = {"base": base["tasks"]} | {name: seeds[0]["tasks"] for name, seeds in measured.items()}
    results = {
        "base": base | evaluation.aggregate(base["tasks"], families),
        "runs": {
            name: over_seeds(seeds, families) | facts[name] for name, seeds in measured.items()
        },
        "samples": evaluation.samples(context.tasks, first),
    }
    wd.write_json(context.folder / "evaluation" / "results.json", results)


def over_seeds(seeds: list[dict], families: dict[str, str]) -> dict[str, Any]:
    """The measures of a mixture: means over its seeds, and under `seeds` each one's averages."""
    per_task = {
        task: {
            **first,
            **{k: mean(seed["tasks"][task][k] for seed in seeds) for k in ("loss", "exact_match")},
        }
        for task, first in seeds[0]["tasks"].items()
    }
    averages = [evaluation.aggregate(seed["tasks"], families) for seed in seeds]
    return {k: v for k, v in seeds[0].items() if k != "tasks"} | {
        **evaluation.aggregate(per_task, families),
        "seeds": [{k: each[k] for k in ("mean", "family_mean")} for each in averages],
    }


def mean(values: Iterable[float | None]) -> float | None:
    """The mean; None where nothing was measured."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def measured_model(context: Context, name: str, source: Source) -> dict[str, Any]:
    """The measures of one model per task, computed or read."""
    section = context.config.evaluation.to_dict()
    for free in ("batch_size", "harness_batch_size"):
        del section[free]
    key = wd.digest(source.key, section, context.config.tasks.length, context.tasks_key)
    folder = context.folder / "evaluation" / name
    if wd.is_done(folder, key):
        say("evaluation", f"{name}: done already")
        return wd.read_json(folder / "measures.json")
    start = time.monotonic()
    wd.begin(folder, key)
    config, params = context.load_model(source)
    per_task = evaluation.evaluate(
        config,
        params,
        context.tokenizer(source),
        context.tasks,
        test_rows(context),
        batch_size=context.config.evaluation.batch_size,
        max_new_tokens=section["max_new_tokens"],
        exact_match_examples=section["exact_match_examples"] or None,
    )
    measures = {"tasks": per_task}
    if section["harness"]:
        measures["harness"] = evaluation.run_harness(
            config,
            params,
            context.tokenizer(source),
            list(section["harness"]),
            path=section["harness_path"],
            batch_size=context.config.evaluation.harness_batch_size,
            num_fewshot=fewshot if (fewshot := section["harness_num_fewshot"]) >= 0 else None,
            limit=section["harness_limit"] or None,
            chat_template=section["harness_chat_template"],
        )
    wd.write_json(folder / "measures.json", measures)
    wd.mark_done(folder, key, seconds=round(time.monotonic() - start, 1))
    loss = mean(m["loss"] for m in per_task.values())
    say("evaluation", f"{name}: mean test loss {loss:.4f} nats per token")
    return wd.read_json(folder / "measures.json")


def test_rows(context: Context) -> list[tasks.Rows]:
    """Every task's test examples, packed for the base's tokenizer."""
    return [context.rows(context.base, task.test, task.name) for task in context.tasks]


@on_primary
def report_stage(context: Context) -> None:
    """Writes the page, prints the table and where the page is."""
    page = report.write_page(context.folder, command=context.command)
    print(f"\n{report.results_table(context.folder)}\n", flush=True)
    say("report", str(page))
