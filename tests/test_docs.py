"""The documents say what is so: links lead somewhere, examples run, the API page is current."""

import doctest
import importlib
import json
import pkgutil
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    named = re.findall(r"`((?:taskpgm|configs|docs|experiments|tests)/[\w/.-]+)`", text)
    absent = [p for p in linked if not (page.parent / p).exists()]
    absent += [p for p in named if not (ROOT / p).exists() and "NAME" not in p]
    assert not absent


def test_the_api_page_is_current():
    api = runpy.run_path(str(ROOT / "docs" / "api.py"))
    assert api["PAGE"].read_text(encoding="utf-8") == api["page"](), "run docs/api.py"


def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    from matplotlib import pyplot

    pyplot.switch_backend("agg")
    drawn = []
    monkeypatch.setattr(pyplot, "show", lambda: drawn.append(len(pyplot.gca().collections)))
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "docs" / "from_matrix_to_weights.ipynb").read_text())
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("%matplotlib inline\n", ""), names)
    pyplot.close("all")
    assert drawn == [len(names["tasks"])] and "(gap)" in capsys.readouterr().out


def test_examples_in_docstrings_run():
    """Those of taskpgm.affinity; tests/mixture/test_examples.py has the others."""
    inside = importlib.import_module("taskpgm.affinity")
    names = [m.name for m in pkgutil.walk_packages(inside.__path__, f"{inside.__name__}.")]
    results = [
        doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
        for name in (inside.__name__, *names)
    ]
    assert sum(result.failed for result in results) == 0 < sum(r.attempted for r in results)
