"""Stages `evaluation` and `report`: what each mixture was worth, and the page that shows it."""

import time
from typing import Any

from taskpgm import evaluation, report, tasks
from taskpgm.stages import workdir as wd
from taskpgm.stages.context import Context, Source, say
from taskpgm.stages.learn import run_folder


def evaluation_stage(context: Context) -> None:
    """Measures the base and the model of every mixture on all held-out examples.

    Each model's measures are kept in evaluation/NAME/, so that one more mixture costs one more
    evaluation.
    """
    weights = wd.read_json(context.folder / "mixture" / "weights.json")
    measured = {"base": measured_model(context, "base", context.base)}
    for name in weights["mixtures"]:
        folder = run_folder(context, name)
        key = wd.done_key(folder)
        if key is None:
            raise ValueError(f"{folder} holds no finished run: run the stage `runs` first")
        measured[name] = measured_model(context, name, Source(folder / "hf", key))
    families = {task.name: task.family for task in context.tasks}
    samples = evaluation.samples(context.tasks, {n: m["tasks"] for n, m in measured.items()})
    results = {"base": measured.pop("base"), "runs": measured, "samples": samples}
    for name, entry in (("base", results["base"]), *measured.items()):
        entry |= evaluation.aggregate(entry["tasks"], families)
        if name != "base":
            done = wd.read_json(run_folder(context, name) / wd.MARK)
            entry |= {k: done[k] for k in ("steps", "epochs", "examples", "seconds")}
    wd.write_json(context.folder / "evaluation" / "results.json", results)


def measured_model(context: Context, name: str, source: Source) -> dict[str, Any]:
    """The measures of one model per task, computed or read."""
    section = context.config.evaluation.to_dict()
    del section["batch_size"]
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
        heldout_rows(context),
        batch_size=context.config.evaluation.batch_size,
        max_new_tokens=section["max_new_tokens"],
        exact_match_examples=section["exact_match_examples"] or None,
    )
    measures = {"tasks": per_task}
    if section["harness"]:
        measures["harness"] = evaluation.run_harness(
            config, params, context.tokenizer(source), list(section["harness"])
        )
    wd.write_json(folder / "measures.json", measures)
    wd.mark_done(folder, key, seconds=round(time.monotonic() - start, 1))
    mean = sum(m["loss"] for m in per_task.values()) / len(per_task)
    say("evaluation", f"{name}: mean held-out loss {mean:.4f} nats per token")
    return wd.read_json(folder / "measures.json")


def heldout_rows(context: Context) -> list[tasks.Rows]:
    """Every task's held-out examples, packed for the base's tokenizer."""
    return [context.rows(context.base, task.heldout, task.name) for task in context.tasks]


def report_stage(context: Context) -> None:
    """Writes the page, prints the table and where the page is."""
    page = report.write_page(context.folder, command=context.command)
    print(f"\n{report.results_table(context.folder)}\n", flush=True)
    say("report", str(page))
