"""docs/artefacts.md names every file of a finished run and every field of its records."""

import dataclasses
import re

import numpy as np
import pytest

from taskpgm import records
from tests.stages.launching import ROOT

PAGE = (ROOT / "docs" / "artefacts.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([^`\s]+)`", PAGE))
ORBAX = re.compile(r"/(state|weights)/|/checkpoints/\d+/|^\.cache/")  # Orbax's and JAX's own
RECORDS = [
    value
    for value in vars(records).values()
    if dataclasses.is_dataclass(value) and value.__module__ == records.__name__
]


def pattern(name: str) -> str:
    """A file named on the page as a regular expression: capitals stand for any name."""
    text = re.escape(name)
    return re.sub(r"(?<![A-Za-z])(NAME|TASK|GROUP|STEP|HASH)(?![A-Za-z])", r"[^/]+", text)


@pytest.mark.pipeline
def test_every_file_of_a_run_is_on_the_page(finished):
    files = [str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file()]
    files = [name for name in files if not ORBAX.search(name)]
    known = [re.compile(pattern(name)) for name in NAMED if "/" in name or "." in name]
    marks = ("done.json", "key.json")  # of every artefact
    absent = [
        name
        for name in files
        if not name.endswith(marks) and not any(k.fullmatch(name) for k in known)
    ]
    inside = [k for k in NAMED if k.endswith("/")]
    absent = [name for name in absent if not any(re.match(pattern(k), name) for k in inside)]
    assert absent == []


@pytest.mark.pipeline
def test_every_array_of_a_run_is_on_the_page(finished):
    for path in finished.rglob("*.npz"):
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            found = {re.sub(r"^(pmi|jsd|transfer)_", "KIND_", name) for name in arrays}
        assert found <= NAMED, path.name


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_every_field_of_a_record_is_on_the_page(record):
    absent = [f.name for f in dataclasses.fields(record) if f.name not in NAMED]
    assert absent == []
