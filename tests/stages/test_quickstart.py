"""The quickstart finds how the suite's tasks relate, and exact mixtures that help.

It is the recipe of `make demo` with three mixtures, one seed, a small budget, fewer steps and
shorter rows, and without its page.
"""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.stages.launching import ROOT, launch

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def workdir(made_once) -> Path:
    """A run of the recipe, without its page."""
    options = (
        "--config.compare=('uniform', 'taskpgm-pmi', 'taskpgm-jsd')",
        "--config.tasks.length=64",
        "--config.tasks.max_test=8",
        "--config.embedded.steps=80",
        "--config.adapters.max_steps=20",
        "--config.adapters.group=14",  # two groups of one size: one program
        "--config.affinity.bootstrap=20",
        "--config.mixture.budget=400",
        "--config.train.seeds=1",
        "--config.evaluation.exact_match_examples=1",
        "--stage=evaluation",
    )
    recipe = ROOT / "configs" / "quickstart.py"
    return made_once(
        "quickstart",
        lambda folder: launch(folder, *options, config=recipe, optimised=True, timeout=900),
    )


def read(path: Path):
    return json.loads(path.read_text())


def matrix_of(workdir, kind):
    """PMI, JSD, or G, in which row i helps column k, [n, n]; and the skill of each task, [n], which
    the suite says by construction."""
    field = "share" if kind == "transfer" else "affinity"
    with np.load(workdir / "affinity" / f"{kind}.npz") as archive:
        matrix, names = archive[field], archive["tasks"].tolist()
    skill = {task["name"]: task["family"] for task in read(workdir / "tasks.json")["tasks"]}
    return matrix, np.array([skill[name] for name in names])


@pytest.fixture(params=["pmi", "jsd", "transfer"])
def related(request, workdir):
    return matrix_of(workdir, request.param)


def pairs(matrix, skill):
    """The entries of two tasks of one skill, and those of two skills."""
    same = skill[:, None] == skill
    return matrix[same & ~np.eye(len(skill), dtype=bool)], matrix[~same]


def test_templates_of_a_skill_are_nearer_than_two_skills(related):
    within, between = pairs(*related)
    assert (within[:, None] > between).mean() > 0.98  # measured: 1, 1, 1
    # Measured: 2.45 (PMI), 2.26 (JSD), 1.60 (G) standard deviations between skills.
    assert within.mean() - between.mean() > 0.7 * between.std()


@pytest.mark.parametrize(("kind", "least"), [("pmi", 18), ("jsd", 17), ("transfer", 18)])
def test_the_nearest_task_and_the_best_teacher_of_a_template_have_its_skill(workdir, kind, least):
    """JSD: rounding decides for one of `type`'s templates, whose neighbours are 0.002 apart."""
    matrix, skill = matrix_of(workdir, kind)
    others = np.where(np.eye(len(skill), dtype=bool), -np.inf, matrix)
    templates = [k for k, name in enumerate(skill) if (skill == name).sum() > 1]
    assert len(templates) == 18
    assert (skill[others[:, templates].argmax(0)] == skill[templates]).sum() >= least


def test_templates_bring_most_of_each_others_gain_and_other_skills_hardly_any(workdir):
    within, between = pairs(*matrix_of(workdir, "transfer"))
    # Measured: 0.87 and 0.006.
    assert within.mean() > 0.5 and np.maximum(between, 0).mean() < 0.15


def test_pooled_divergences_make_a_positive_semidefinite_affinity(workdir):
    with np.load(workdir / "affinity" / "jsd.npz") as archive:
        assert np.linalg.eigvalsh(archive["affinity"]).min() > -1e-9


def test_mixtures_are_certified_and_meet_the_budget(workdir):
    weights = read(workdir / "mixture" / "weights.json")
    section = read(workdir / "config.json")["mixture"]
    most = np.array(weights["sizes"]) * section["max_epochs"]
    for name, entry in weights["mixtures"].items():
        assert sum(entry["counts"]) == section["budget"], name
        assert (np.array(entry["counts"]) <= most).all()
        if name.startswith("taskpgm"):
            assert entry["gap"] <= 1e-9 * max(1, abs(entry["energy"]))


def test_fine_tuning_helped_and_every_run_had_the_same_steps(workdir):
    results = read(workdir / "evaluation" / "results.json")
    assert len({run["steps"] for run in results["runs"].values()}) == 1
    for run in results["runs"].values():
        assert run["mean"]["loss"] < results["base"]["mean"]["loss"]
