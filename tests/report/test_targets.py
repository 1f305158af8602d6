"""Targets stand apart on the page, in tables and in a terminal; families at a bound are named."""

import csv
import json

import numpy as np
import pytest

from taskpgm.report import results_table, write_page
from taskpgm.report.page import render
from taskpgm.report.study import read_study
from taskpgm.report.transfer import influences

TARGETS = ("my aim", "another")


@pytest.fixture
def judged(make_workdir, tmp_path):
    """A workdir with two targets, and a mixture whose families are held at bounds."""
    workdir = make_workdir(tmp_path / "it", 6, 2, seeds=2)
    path = workdir / "tasks.json"
    listed = json.loads(path.read_text())
    one = listed["tasks"][0]
    listed["tasks"] += [{**one, "name": x, "train": 0, "target": True} for x in TARGETS]
    path.write_text(json.dumps(listed))

    path = workdir / "affinity" / "transfer.npz"
    arrays = dict(np.load(path))
    extra = np.stack([np.linspace(-1, 1, 6), np.linspace(1, -1, 6)], 1)
    for name in ("share", "low", "high"):
        arrays[name] = np.concatenate([arrays[name], extra], 1)
    arrays |= {"targets": np.array(TARGETS), "learnt": np.append(arrays["learnt"], [True, False])}
    np.savez(path, **arrays)

    path = workdir / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    for i, model in enumerate((results["base"], *results["runs"].values())):
        report = {"loss": 3.25 + i, "exact_match": 0.5, "examples": 3, "tokens": 9}
        mean = {"loss": 3.25 + i, "exact_match": 0.5}
        model |= {"targets": dict.fromkeys(TARGETS, report), "target_mean": mean}
        for seed in model.get("seeds", ()):
            seed["target_mean"] = mean
    path.write_text(json.dumps(results))

    path = workdir / "mixture" / "weights.json"
    weights = json.loads(path.read_text())
    weights["targets"] = list(TARGETS)
    family = weights["families"][0]
    weights["mixtures"]["taskpgm-pmi"]["explain"]["family_cost"] = {family: -0.125, "free": 0.0}
    path.write_text(json.dumps(weights))
    return workdir


def test_they_are_in_their_own_column_and_table_and_nowhere_else(judged):
    study = read_study(judged)
    assert study.targets == TARGETS and len(study.tasks) == 6
    page = write_page(judged).read_text()
    assert "<h3>Targets</h3>" in page and "loss, over targets" in page
    assert "targets, judged and not mixed" in page and page.count("3.2500") >= 2
    assert "Targets stand at the right of the line" in page
    text = results_table(judged)
    assert "loss on targets" in text and "3.2500" in text
    rows = list(csv.DictReader((judged / "report" / "results.csv").read_text().splitlines()))
    column = next(name for name in rows[0] if name.startswith("loss, over targets"))
    assert [float(row[column]) for row in rows] == [3.25 + i for i in range(len(rows))]


def test_they_have_teachers_and_no_pupils(judged):
    study = read_study(judged)
    assert study.transfer is not None
    aim, other = influences(study.transfer)[-2:]
    assert (aim.task, other.task) == TARGETS and aim.learnt and not other.learnt
    assert aim.teachers[0] == (study.tasks[5], "1.00") and other.teachers[0][0] == study.tasks[0]
    assert aim.pupils == other.pupils == []


def test_families_at_a_bound_are_named_with_their_price(judged):
    page = render(read_study(judged), {})
    assert "Families held at a bound" in page and "\N{MINUS SIGN}0.1250" in page
    assert "free " not in page.split("Families held at a bound")[1].split("</p>")[0]
