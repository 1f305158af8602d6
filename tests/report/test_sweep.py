"""A sweep on the page: every setting in the table, a figure for each swept key."""

import csv
import json
import shutil

import pytest
from matplotlib.axes import Axes

from taskpgm.report import results_table, write_page
from taskpgm.report.page import render
from taskpgm.report.study import read_study
from taskpgm.report.style import LIGHT
from taskpgm.report.sweep import curves, figures, swept_keys, table


def point(row, settings, loss, **told):
    given = {
        "name": row + str(settings),
        "row": row,
        "settings": settings,
        "seeds": 2,
        "loss": loss,
        "sd": 0.01,
        "family_loss": loss,
        "exact_match": None,
        "best": 0.5,
        "examples": 100,
        "tokens": 4000,
        "steps": 30,
    }
    return given | told


POINTS = [
    point(
        "taskpgm-pmi",
        {"mixture.ratio": ratio, "mixture.budget": budget},
        1 + 0.1 * i - 1e-6 * budget,
    )
    for i, ratio in enumerate(("4", "0", "0.5", "auto"))
    for budget in (25_000, 100_000)
] + [point("uniform", {"mixture.budget": budget}, 0.5) for budget in (25_000, 100_000)]


@pytest.fixture
def swept(make_workdir, tmp_path):
    workdir = make_workdir(tmp_path, 8, 2)
    for other in ("affinity", "runs"):  # what has figures of its own
        shutil.rmtree(workdir / other)
    path = workdir / "evaluation" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sweep": POINTS}))
    return workdir


def test_settings_stand_in_their_order(swept):
    study = read_study(swept)
    assert swept_keys(study) == ["mixture.ratio", "mixture.budget"]
    rows = [row[:3] for row in table(study).rows]
    assert rows[:4] == [
        ("taskpgm-pmi", "0", "25000"),
        ("taskpgm-pmi", "0", "100000"),
        ("taskpgm-pmi", "0.5", "25000"),
        ("taskpgm-pmi", "0.5", "100000"),
    ]
    assert rows[6:] == [
        ("taskpgm-pmi", "auto", "25000"),
        ("taskpgm-pmi", "auto", "100000"),
        ("uniform", "any", "25000"),
        ("uniform", "any", "100000"),
    ]


def test_the_page_and_the_terminal_and_a_file_show_it(swept):
    text = write_page(swept).read_text()
    assert '<section id="sweep">' in text and "over ratio, budget." in text
    for name in ("sweep-ratio", "sweep-budget"):
        assert (swept / "report" / f"{name}.png").stat().st_size > 5000
        assert f'alt="test loss of every mixture against {name.removeprefix("sweep-")}"' in text
    with (swept / "report" / "sweep.csv").open() as file:
        read = list(csv.DictReader(file))
    assert [float(row["loss, mean over tasks"]) for row in read[-2:]] == [0.5, 0.5]
    said = results_table(swept)
    assert "all settings of this workdir" in said
    assert (
        sum(line.startswith("taskpgm-pmi ") for line in said.split("workdir")[1].splitlines()) == 8
    )


def test_no_line_leads_from_a_number_to_a_word(swept, monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "errorbar", lambda axes, x, y, **style: drawn.append((x, style)))
    curves(read_study(swept), "mixture.ratio", LIGHT)
    joined = [x for x, style in drawn if style["linewidth"] > 0]
    alone = [x for x, style in drawn if style["linewidth"] == 0]
    assert joined == [[0.0, 1.0, 2.0]] * 2 and alone == [[3.0]] * 2  # of two budgets
    assert sum("label" in style for _, style in drawn) == 2


def test_one_setting_is_no_sweep(make_workdir, tmp_path):
    study = read_study(make_workdir(tmp_path, 8, 2))
    assert 'id="sweep"' not in render(study, {}) and not list(figures(study))


def test_a_point_without_a_loss_is_shown_as_such(swept):
    path = swept / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    results["sweep"][0] |= {"loss": None, "sd": None, "family_loss": None, "best": None}
    path.write_text(json.dumps(results))
    study = read_study(swept)
    assert all(draw(LIGHT).startswith(b"\x89PNG") for _, _, draw in figures(study))
    assert 'id="sweep"' in render(study, {})
    row = next(row for row in table(study).text() if row[1:3] == ["4", "25000"])
    assert row[4:7] == ["–", "–", "–"]
