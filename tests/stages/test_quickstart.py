"""The quickstart finds how the suite's tasks relate, exact mixtures, and makes a whole page.

It is the recipe of `make demo`, with three mixtures and one seed instead of all.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from taskpgm.tasks import NEAR_DUPLICATES
from tests.stages.launching import ROOT, launch

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def workdir(made_once) -> Path:
    """A whole run of the recipe."""
    options = "--config.compare=('uniform', 'taskpgm-pmi', 'taskpgm-jsd')", "--config.train.seeds=1"
    recipe = ROOT / "configs" / "quickstart.py"
    return made_once(
        "quickstart", lambda folder: launch(folder, *options, config=recipe, timeout=900)
    )


def read(path: Path):
    return json.loads(path.read_text())


@pytest.fixture(params=["pmi", "jsd"])
def affinity(request, workdir):
    """(S [n, n], the tasks' names, their families) of the quickstart."""
    with np.load(workdir / "affinity" / f"{request.param}.npz") as archive:
        matrix, names = archive["affinity"], archive["tasks"].tolist()
    family = {task["name"]: task["family"] for task in read(workdir / "tasks.json")["tasks"]}
    return matrix, names, np.array([family[name] for name in names])


def test_tasks_of_a_family_are_nearer_than_strangers(affinity):
    matrix, names, family = affinity
    same = family[:, None] == family
    within = matrix[same & ~np.eye(len(names), dtype=bool)]
    assert within.mean() > matrix[~same].mean()


def test_near_duplicates_are_each_others_nearest(affinity):
    matrix, names, _ = affinity
    others = np.where(np.eye(len(names), dtype=bool), -np.inf, matrix)
    nearest = {name: names[k] for name, k in zip(names, others.argmax(1), strict=True)}
    for one, other in NEAR_DUPLICATES:
        assert (nearest[one], nearest[other]) == (other, one)


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


def test_the_page_stands_alone(workdir):
    page = (workdir / "report" / "index.html").read_text()
    assert "data:image/png;base64," in page
    # Examples may speak of addresses; nothing is fetched from one.
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "@import" not in page and "url(http" not in page
