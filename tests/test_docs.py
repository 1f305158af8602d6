"""The documents say what is so: links lead somewhere, examples run, the API page is current."""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
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
    said = subprocess.run(
        [sys.executable, ROOT / "docs" / "api.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr


def test_the_notebook_runs(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "docs" / "from_matrix_to_weights.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    printed = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output["output_type"] == "stream"
    ]
    assert any("gap" in text for text in printed)


@pytest.mark.parametrize("package", ["mixture", "affinity"])
def test_examples_in_docstrings_run(package):
    inside = importlib.import_module(f"taskpgm.{package}")
    names = [m.name for m in pkgutil.walk_packages(inside.__path__, f"{inside.__name__}.")]
    results = [
        doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
        for name in (inside.__name__, *names)
    ]
    assert sum(result.failed for result in results) == 0
