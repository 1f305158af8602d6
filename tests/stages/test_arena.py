"""configs/arena.py: every row of the table, in one workdir."""

import json
import re

import pytest

from configs import arena
from taskpgm.records import Choosing, Results, from_json
from taskpgm.stages.compare import parse
from taskpgm.stages.rows import ROWS

from .launching import launch

# As small as four tasks and seconds ask for.
SMALL = {
    "k=12": "k=3",
    "runs=64": "runs=2",
    "doremi": "doremi:steps=2",
    "skill-it": "skill-it:steps=6",
    "less:rows=64": "less:rows=4,epochs=2",
}


def small(name: str) -> str:
    return SMALL.get(name) or re.sub("k=12|runs=64", lambda found: SMALL[found[0]], name)


def test_it_names_every_row():
    config = arena.get_config()
    assert {name.partition(":")[0] for name in config.compare} == set(ROWS) - {"weights"}
    for name in config.compare:
        parse(name)


@pytest.mark.pipeline
def test_every_row_runs_from_one_command(begun, tasks_folder):
    workdir, rows = begun, tuple(map(small, arena.ROWS))
    # Folders of tasks have no families.
    rows = tuple(name for name in rows if name != "uniform-families")
    said = launch(
        workdir,
        f"--config.tasks.source={tasks_folder}",
        f"--config.compare={rows}",
        "--config.train.steps=1",
        "--config.evaluation.exact_match_examples=1",
        "--config.evaluation.max_new_tokens=1",
        "--stage=evaluation",
        timeout=1200,
    ).stdout
    results = from_json(Results, json.loads((workdir / "evaluation" / "results.json").read_text()))
    found = from_json(Choosing, json.loads((workdir / "mixture" / "choosing.json").read_text()))
    assert list(results.runs) == list(found.rows) == list(rows)
    assert all(row.total and row.total.seconds is not None for row in found.rows.values())
    assert "cost of choosing" in said and "shared: adapters" in said
