"""What `make demo` found: the suite's planted structure, exact mixtures, a whole page.

`make test` runs the quickstart before these tests.
"""

import json
import re

import numpy as np
import pytest

from taskpgm.tasks import NEAR_DUPLICATES
from tests.stages.launching import ROOT

WORKDIR = ROOT / "runs" / "quickstart"
pytestmark = pytest.mark.skipif(
    not (WORKDIR / "evaluation" / "results.json").is_file(),
    reason="reads the output of the quickstart: run `make demo` first",
)


def read(name: str):
    return json.loads((WORKDIR / name).read_text())


@pytest.fixture(params=["pmi", "jsd"])
def affinity(request):
    """(S [n, n], the tasks' names, their families) of the quickstart."""
    with np.load(WORKDIR / "affinity" / f"{request.param}.npz") as archive:
        matrix, names = archive["affinity"], archive["tasks"].tolist()
    family = {task["name"]: task["family"] for task in read("tasks.json")["tasks"]}
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


def test_pooled_divergences_make_a_positive_semidefinite_affinity():
    with np.load(WORKDIR / "affinity" / "jsd.npz") as archive:
        assert np.linalg.eigvalsh(archive["affinity"]).min() > -1e-9


def test_mixtures_are_certified_and_meet_the_budget():
    weights = read("mixture/weights.json")
    section = read("config.json")["mixture"]
    most = np.array(weights["sizes"]) * section["max_epochs"]
    for name, entry in weights["mixtures"].items():
        assert sum(entry["counts"]) == section["budget"], name
        assert (np.array(entry["counts"]) <= most).all()
        if name.startswith("taskpgm"):
            assert entry["gap"] <= 1e-9 * max(1, abs(entry["energy"]))


def test_fine_tuning_helped_and_every_run_had_the_same_steps():
    results = read("evaluation/results.json")
    assert len({run["steps"] for run in results["runs"].values()}) == 1
    for run in results["runs"].values():
        assert run["mean"]["loss"] < results["base"]["mean"]["loss"]


def test_the_page_stands_alone():
    page = (WORKDIR / "report" / "index.html").read_text()
    assert "data:image/png;base64," in page
    # Examples may speak of addresses; nothing is fetched from one.
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "@import" not in page and "url(http" not in page
