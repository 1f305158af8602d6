"""The page from whole, partial, odd and damaged workdirs."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from taskpgm.mixture.clustering import linkage
from taskpgm.report import write_page
from taskpgm.report.heatmap import _tree, heat_map
from taskpgm.report.page import plan, render
from taskpgm.report.study import Affinity, read_study
from taskpgm.report.style import LIGHT, figure

VOID = {"meta", "img", "source", "br"}


class Checker(HTMLParser):
    """Every element closed in order; collects what the page refers to, its ids and its text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.references, self.ids, self.words = [], [], set(), []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.references += [values[k] for k in ("src", "srcset", "href") if k in values]
        self.ids |= {values["id"]} if "id" in values else set()
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def whole(make_workdir, tmp_path_factory):
    workdir = make_workdir(tmp_path_factory.mktemp("page") / "it", 10, 3)
    return workdir, write_page(workdir, ["launch.py", "--config=configs/a b.py"])


def test_the_page_is_one_file_that_needs_nothing_else(whole):
    workdir, path = whole
    assert path == workdir / "report" / "index.html"
    page = Checker(path.read_text())
    inside = {f"#{name}" for name in page.ids}
    assert all(r.startswith("data:image/png;base64,") or r in inside for r in page.references)
    assert not re.search(r"https?://|@import|url\(", path.read_text())


def test_the_page_shows_everything(whole):
    workdir, path = whole
    study, text = read_study(workdir), path.read_text()
    words = " ".join(Checker(text).words)
    for name in (*study.tasks, *study.families, *study.mixtures):
        assert name in words
    for heading in (
        "Results",
        "How tasks relate",
        "Who helps whom",
        "The mixtures",
        "Why these weights",
        "Training",
        "Answers",
        "How to read this page",
        "Run it again",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert "python launch.py '--config=configs/a b.py'" in words
    assert "upper: <b>&amp;</b>" in words  # shown, not interpreted
    drawn = {path.name for path in (workdir / "report").glob("*.png")}
    names = (
        "affinity-pmi",
        "affinity-jsd",
        "weights",
        "gains",
        "training",
        "optimality-taskpgm-pmi",
        "optimality-taskpgm-jsd",
        "transfer",
        "paths",
        "selection",
        "predicted",
    )
    assert drawn == {f"{name}{theme}.png" for name in names for theme in ("", "-dark")}
    assert text.count('<source media="(prefers-color-scheme: dark)"') == len(names)
    assert not list((workdir / "report").glob(".*"))


def rows_of(text, *cells):
    """The page's table rows that have all these cells, tags taken out."""
    found = []
    for row in re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.DOTALL):
        row = [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]
        if set(cells) <= set(row):
            found.append(row)
    return found


def test_every_weight_has_its_interval(whole):
    workdir, path = whole
    study, text = read_study(workdir), path.read_text()
    for mixture in (m for m in study.mixtures.values() if m.explain):
        ends = zip(study.tasks, mixture.explain["low"], mixture.explain["high"], strict=True)
        for task, low, high in ends:
            assert len(rows_of(text, task, f"{low:.1%} to {high:.1%}")) >= 1, (mixture.name, task)
    # Without intervals there is no empty column of them.
    assert text.count("<th>95% interval</th><th>kept in</th>") == 2


@pytest.mark.parametrize("kind", ["pmi", "jsd"])
def test_every_pair_has_its_interval_and_the_closest_come_first(whole, kind):
    workdir, path = whole
    study = read_study(workdir)
    affinity, text = study.affinities[kind], path.read_text()
    plain = "{:.4f}".format
    signed = lambda x: plain(x).replace("-", "\N{MINUS SIGN}")  # noqa: E731
    pairs = [(i, j) for i in range(10) for j in range(i + 1, 10)]
    pairs.sort(key=lambda pair: -affinity.matrix[pair])
    for rank, (i, j) in enumerate(pairs):
        ends = f"{signed(affinity.low[i, j])} to {signed(affinity.high[i, j])}"
        cells = [study.tasks[i], study.tasks[j], signed(affinity.matrix[i, j]), ends]
        assert rows_of(text, *cells) == [cells] * (2 if rank < 8 else 1)
    assert "All pairs (45)" in text


def test_how_sure_it_is_stands_below_the_results(make_workdir, tmp_path):
    workdir = make_workdir(tmp_path, 10, 3, seeds=3)
    study = read_study(workdir)
    text = render(study, {})
    by_tasks, by_families = study.comparison["tasks"], study.comparison["families"]
    first, *others = by_tasks.ranked
    assert f"<th>loss minus that of {first}</th>" in text
    for name in others:
        pair = next(p for p in by_tasks.pairs if (p.first, p.second) == (first, name))
        shown = f"{-pair.difference:+.4f}".replace("-", "\N{MINUS SIGN}")
        wins = f"{10 - pair.wins} of 10"
        assert len(rows_of(text, name, shown, wins)) == 1
        assert rows_of(text, name, f"{by_tasks.best[name]:.2f} / {by_families.best[name]:.2f}")
    assert "All pairs (6)" in text
    spent = [
        "1.00",
        "400",
        f"{study.runs[first]['tokens']:,}",
        f"{study.runs[first]['examples']:,}",
    ]
    assert len(rows_of(text, first, *spent)) == 1
    task = study.tasks[0]
    counts = [f"{n[task]:,}" for n in (study.train, study.heldout, study.test)]
    assert len(rows_of(text, task, *counts, "240")) == 1  # tokens that its loss is over


def test_what_choosing_cost_stands_with_what_it_was_worth(whole):
    _, path = whole
    text = path.read_text()
    assert "<h3>What choosing cost</h3>" in text
    costs = ["5,000", "700", "3.0e+09", "12.5"]
    assert rows_of(text, "taskpgm-pmi", *costs) == [["taskpgm-pmi", *costs, "adapters"]]
    assert rows_of(text, "shared: adapters", *costs, "2 mixtures")
    assert rows_of(text, "uniform", "0", "0.0e+00", "0.2", "nothing")


def test_many_pairs_are_cut_and_pairs_without_interval_shown(make_workdir, tmp_path, monkeypatch):
    monkeypatch.setattr("taskpgm.report.tables.PAIRS", 20)
    workdir = make_workdir(tmp_path, 10, 3)
    kept = dict(np.load(workdir / "affinity" / "pmi.npz"))
    np.savez(workdir / "affinity" / "pmi.npz", affinity=kept["affinity"], tasks=kept["tasks"])
    (workdir / "affinity" / "jsd.npz").unlink()
    text = render(read_study(workdir), {})
    assert "The 20 closest of 45 pairs" in text
    assert text.count("<th>affinity</th></tr>") == 2  # and no column for intervals


def test_the_same_artefacts_give_the_same_bytes(whole):
    workdir, _ = whole
    study = read_study(workdir)
    again = {name: draw for name, _, draw in plan(study)}
    for name in ("affinity-pmi", "optimality-taskpgm-jsd", "gains"):
        assert again[name](LIGHT) == (workdir / "report" / f"{name}.png").read_bytes(), name
    assert render(study, {}) == render(read_study(workdir), {})


@pytest.mark.parametrize(
    "missing",
    ["config.json", "tasks.json", "affinity", "mixture", "runs", "evaluation", "affinity/jsd.npz"],
)
def test_a_missing_piece_is_left_out(whole, tmp_path, missing):
    workdir, _ = whole
    copy = tmp_path / "it"
    shutil.copytree(workdir, copy, ignore=shutil.ignore_patterns("report"))
    target = copy / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    Checker(render(read_study(copy), {}))


def test_a_matrix_and_its_weights_are_enough(tmp_path):
    n = 5
    noise = np.random.default_rng(0).normal(size=(n, n))
    (tmp_path / "affinity").mkdir()
    (tmp_path / "mixture").mkdir()
    names = [f"task {i}" for i in range(n)]
    np.savez(tmp_path / "affinity" / "pmi.npz", affinity=noise + noise.T, tasks=np.array(names))
    weights = [0.5, 0.3, 0.2, 0.0, 0.0]
    entry = {
        "affinity": "pmi",
        "method": "exact",
        "ratio": 2.0,
        "weights": weights,
        "counts": None,
        "energy": -1.0,
        "gap": 0.0,
        "effective": 2.8,
        "explain": None,
    }
    value = {
        "tasks": names,
        "families": [""] * n,
        "sizes": None,
        "main": "taskpgm-pmi",
        "mixtures": {"taskpgm-pmi": entry},
    }
    (tmp_path / "mixture" / "weights.json").write_text(json.dumps(value))
    text = write_page(tmp_path).read_text()
    assert "keeps 3 of 5 tasks" in text
    assert "<h2>Results</h2>" not in text
    Checker(text)


def test_tiny_and_odd_studies_are_drawn(make_workdir, tmp_path):
    """Two tasks, one family, no exact match, names of any length."""
    workdir = make_workdir(tmp_path, 2, 1)
    path = workdir / "evaluation" / "results.json"
    results = json.loads(path.read_text())
    for run in (results["base"], *results["runs"].values()):
        for section in (
            run["tasks"],
            run["families"],
            {"mean": run["mean"]},
            {"mean": run["family_mean"]},
        ):
            for report in section.values():
                report["exact_match"] = None
    results["base"]["harness"] = {"mmlu": {"acc,none": 0.25, "acc_stderr,none": 0.1}}
    results["samples"] = []
    text = json.dumps(results)
    for old in read_study(workdir).tasks:
        for name in ("tasks.json", "mixture/weights.json"):
            file = workdir / name
            file.write_text(file.read_text().replace(old, "n" * 90 + old))
        text = text.replace(old, "n" * 90 + old)
    path.write_text(text)
    words = " ".join(Checker(write_page(workdir).read_text()).words)
    assert "mmlu: acc" in words
    assert "acc_stderr" not in words


def test_names_are_drawn_as_they_are(make_workdir, tmp_path):
    names = ("cost_$5_$", "a$b^$", "smile \U0001f600", "bell\x07", "b\u00e4r")
    workdir = make_workdir(tmp_path, 5, 2)
    renamed = dict(zip(read_study(workdir).tasks, names, strict=True))
    for file in ("tasks.json", "mixture/weights.json", "evaluation/results.json"):
        text = (workdir / file).read_text()
        for old, name in renamed.items():
            text = text.replace(json.dumps(old)[1:-1], json.dumps(name)[1:-1])
        (workdir / file).write_text(text)
    for kind in ("pmi", "jsd", "transfer"):
        path = workdir / "affinity" / f"{kind}.npz"
        with np.load(path) as archive:
            arrays = {key: archive[key] for key in archive}
        arrays["tasks"] = np.array([renamed[str(task)] for task in arrays["tasks"]])
        np.savez(path, **arrays)
    write_page(workdir)  # warnings, a missing shape among them, are errors here
    assert tuple(read_study(workdir).tasks) == names


def test_nothing_to_show_and_damage_are_one_clear_line(make_workdir, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to show yet"):
        write_page(tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    workdir = make_workdir(tmp_path / "it", 6, 2)
    (workdir / "affinity" / "pmi.npz").write_bytes(b"PK\x03\x04 not a whole one")
    with pytest.raises(ValueError, match=r"pmi\.npz is damaged"):
        write_page(workdir)
    (workdir / "affinity" / "pmi.npz").unlink()
    (workdir / "tasks.json").write_text('{"tasks": [')
    with pytest.raises(ValueError, match=r"tasks\.json is damaged"):
        write_page(workdir)


def test_the_tree_stands_beside_its_rows():
    matrix = np.array([[0, 5, 1, 1], [5, 0, 1, 1], [1, 1, 0, 4], [1, 1, 4, 0.0]])
    with figure(3, 3, LIGHT) as drawn:
        axes = drawn.subplots()
        _tree(axes, linkage(matrix), LIGHT)
        brackets = {
            tuple(map(tuple, path.vertices.tolist())) for path in axes.collections[0].get_paths()
        }
    # (height, row): two pairs of neighbours, and the bracket that joins them at their middles.
    assert brackets == {
        ((0, 0), (0, 0), (0, 1), (0, 1)),
        ((0, 2), (1, 2), (1, 3), (0, 3)),
        ((0, 0.5), (4, 0.5), (4, 2.5), (1, 2.5)),
    }


def test_one_task_has_no_tree():
    affinity = Affinity("pmi", np.zeros((1, 1)), ("only",))
    assert heat_map(affinity, {}, LIGHT).startswith(b"\x89PNG")
