"""The real study: its tasks by a rule, its benchmarks, its config, and the order of its calls."""

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import yaml

from taskpgm.stages import compare
from taskpgm.stages.validation import validate
from taskpgm.tasks import load_tasks
from tests.scripts import EXPERIMENTS, script


@pytest.fixture
def study():
    with script(EXPERIMENTS / "real" / "study.py") as module:
        yield module


@pytest.fixture
def data(tmp_path) -> Path:
    """A suite of three families, of which one has 16 tasks, and what judges it."""
    root = tmp_path / "data"
    for family, count in (("sentiment", 16), ("time", 3), ("words", 2)):
        folder = root / "suite" / family
        folder.mkdir(parents=True)
        for k in range(count):
            for split in ("", ".heldout", ".test"):
                row = {"prompt": f"{family}{k}{split}", "response": " yes"}
                (folder / f"{family}{k:02}{split}.jsonl").write_text(json.dumps(row) + "\n")
    (root / "bbh").mkdir()
    for name, count in (("few", 3), ("many", 20)):
        rows = [{"prompt": f"{name} {i}\nAnswer:", "response": f" {i}"} for i in range(count)]
        (root / "bbh" / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return root


def test_the_tasks_are_chosen_by_a_rule_over_names(study, data):
    names = [path.stem for path in study.chosen_tasks(data / "suite")]
    assert names == [f"sentiment{k:02}" for k in range(0, 16, 2)] + ["time00", "time01", "words00"]
    with pytest.raises(SystemExit, match="make it by tasks.py"):
        study.chosen_tasks(data / "bbh")


@pytest.mark.parametrize("choices", [["a", "b", "c", "d"], "['a', 'b', 'c', 'd']"])
def test_what_is_prepared_is_what_the_launcher_reads(study, data, tmp_path, choices):
    mmlu, out = tmp_path / "mmlu", tmp_path / "out"
    mmlu.mkdir()
    question = {"question": "Which?", "choices": choices, "answer": "2"}
    (mmlu / "subject.jsonl").write_text(json.dumps(question) + "\n")
    assert study.prepare(out, data, mmlu) == ["real_bbh", "real_mmlu"]
    copied = {p.relative_to(out / "tasks") for p in (out / "tasks").rglob("*.jsonl")}
    assert len(copied) == 3 * 11 and Path("time/time00.heldout.jsonl") in copied
    for name, count in (("real_bbh", 3 + study.BBH_ROWS), ("real_mmlu", 1)):
        task = yaml.safe_load((out / "benchmarks" / f"{name}.yaml").read_text())
        assert task["task"] == name and task["output_type"] == "loglikelihood"
        assert (task["doc_to_text"], task["doc_to_target"]) == ("{{prompt}}", "{{response}}")
        rows = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
        assert len(rows) == count
    assert json.loads(rows[0]) == {
        "prompt": "Which?\nA. a\nB. b\nC. c\nD. d\nAnswer:",
        "response": " C",
    }


def test_the_config_is_one_that_the_stages_take(study):
    config = importlib.import_module("config").get_config()
    validate(config)
    for budget in study.BUDGETS:
        config.mixture.budget = budget
        compare.check(config, np.full(25, 200))


def test_calls_follow_the_protocol_and_each_goes_on_from_the_last(study, tmp_path):
    calls = study.calls()
    assert calls[0].last == "mixture"
    models = set()
    assert [call.part for call in calls].count("swarm") == 1
    for call in calls[1:]:
        if call.part == "swarm":
            continue
        asked = {
            (row, budget, seed)
            for row in study.ROWS
            for budget in study.BUDGETS[: call.budgets]
            for seed in range(call.seeds)
        }
        fresh = asked - models
        assert len(fresh) <= len(study.ROWS)  # one more seed of one budget
        models |= asked
    assert len(models) == len(study.BUDGETS) * len(study.ROWS) * study.SEEDS
    words = calls[-1].words(tmp_path, {"model": "M", "benchmarks": ["real_bbh"]})
    assert "--config.sweep.budget=(300, 1200)" in words
    assert "--config.evaluation.harness=('real_bbh',)" in words


@pytest.mark.parametrize("workers", [1, 3])
def test_a_call_may_be_made_by_several_processes(study, tmp_path, monkeypatch, workers):
    """Each is a launcher of its own that shares the workdir; one that fails ends the sitting."""
    told = """
import os, pathlib, sys
line = " ".join([*sys.argv[2:], os.environ.get("XLA_PYTHON_CLIENT_PREALLOCATE", "")])
pathlib.Path(sys.argv[1], str(os.getpid())).write_text(line)
sys.exit(3 if sys.argv[2] == "fails" else 0)
"""
    said = tmp_path / "said"
    said.mkdir()
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    for part, code in (("works", 0), ("fails", 3)):
        words = [sys.executable, "-c", told, str(said), part]
        monkeypatch.setattr(study.Call, "words", lambda *_, words=words: [*words])
        assert study.sit(tmp_path, study.Call("all", 1), {}, None, workers) == code
    each = ["works --shared false", "fails --shared false"] if workers > 1 else ["works ", "fails "]
    assert sorted(path.read_text() for path in said.iterdir()) == sorted(workers * each)
    notes = [json.loads(line) for line in (tmp_path / "sittings.jsonl").read_text().splitlines()]
    assert [(note["workers"], note["exit"]) for note in notes] == [(workers, 0), (workers, 3)]


def test_processes_stop_when_the_sitting_is_over(study, tmp_path, monkeypatch):
    words = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(study.Call, "words", lambda *_: [*words])
    assert study.sit(tmp_path, study.Call("all", 1), {}, 1.0, 2) == -15  # long ago


def test_the_swarm_weighs_the_tasks_that_the_launcher_reads(study, data, tmp_path):
    out = tmp_path / "out"
    study.prepare(out, data, None)
    names = {task.name for task in load_tasks(str(out / "tasks"), seed=0)}
    files = sorted((out / "swarm").glob("*.json"))
    assert len(files) == study.SWARM >= 40
    drawn = [json.loads(path.read_text()) for path in files]
    assert all(weights.keys() == names for weights in drawn)
    assert all(abs(sum(weights.values()) - 1) < 1e-4 for weights in drawn)
    largest = [max(weights.values()) for weights in drawn]
    assert np.mean(largest[::3]) > np.mean(largest[1::3]) > np.mean(largest[2::3])
    rows = study.rows_of("swarm", out)
    for row in rows:
        _, arguments = compare.parse(row)
        assert str(arguments["file"]) in map(str, files)


def test_weights_of_judged_runs_are_removed_and_of_no_others(study, tmp_path):
    for name in ("judged", "waiting"):  # `waiting` lacks its benchmarks
        for path in ("hf/model.safetensors", "hf/config.json", "checkpoints/3", "done.json"):
            file = tmp_path / "runs" / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("")
    for name in ("judged", "waiting", "harness/judged"):
        (tmp_path / "evaluation" / name).mkdir(parents=True)
        (tmp_path / "evaluation" / name / "done.json").write_text("")
    study.remove_judged(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    kept = {f"runs/waiting/{p}" for p in ("hf/model.safetensors", "checkpoints/3")}
    assert left == kept | {
        f"runs/{n}/{p}" for n in ("judged", "waiting") for p in ("hf/config.json", "done.json")
    }


def test_a_new_folder_needs_a_model_and_data(study, tmp_path):
    with pytest.raises(SystemExit, match="^error: .*new: give --model and --data$"):
        study.main(tmp_path / "new", Namespace(model=None, data=None))
