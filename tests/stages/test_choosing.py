"""What choosing a mixture cost: every row pays for all that it rests on."""

import json

import pytest

from taskpgm.records import Choosing, ChoosingCost, RowCost, from_json
from taskpgm.stages.choosing import summed, table

from .launching import launch

ADAPTERS = ChoosingCost(1000, 0, 6e9, 10.0)
SCORES = ChoosingCost(0, 500, 1e9, 2.0)


def test_parts_and_solving_add_up():
    assert summed([ADAPTERS, SCORES], 0.5) == ChoosingCost(1000, 500, 7e9, 12.5)
    assert summed([], 0.5) == ChoosingCost(0, 0, 0.0, 0.5)
    assert summed([ADAPTERS], None).seconds is None


def test_the_table_tells_what_is_shared_once():
    both = ["adapters", "scores"]
    rows = {
        "uniform": RowCost([], 0.0, summed([], 0.0)),
        "taskpgm-pmi": RowCost(both, 0.5, summed([ADAPTERS, SCORES], 0.5)),
        "mixmin": RowCost(["adapters"], 0.1, summed([ADAPTERS], 0.1)),
        "given": RowCost([], 0.1, None),
    }
    lines = table(Choosing(rows, {"adapters": ADAPTERS, "scores": SCORES}))
    assert [line.split()[0] for line in lines] == ["cost", *rows, "shared:"]
    assert lines[2].split() == [
        "taskpgm-pmi",
        "1,000",
        "500",
        "7.0e+09",
        "12.5",
        "adapters,",
        "scores",
    ]
    assert lines[4].split() == ["given", "a", "given", "matrix"]
    assert lines[5].split() == ["shared:", "adapters", "1,000", "0", "6.0e+09", "10.0", "2", "rows"]


@pytest.mark.pipeline
def test_a_run_tells_what_choosing_took_and_a_plan_counts_the_same(finished):
    found = from_json(Choosing, json.loads((finished / "mixture" / "choosing.json").read_text()))
    config = json.loads((finished / "config.json").read_text())
    assert list(found.rows) == config["compare"]
    assert found.rows["uniform"].total.trained == 0 and found.rows["uniform"].parts == []
    row, parts = found.rows["taskpgm-pmi"], found.parts
    assert row.parts == ["adapters", "scores"] == list(parts)
    # 4 tasks, 3 or 4 steps of 2 rows of 48 tokens; 4 models and the base read all held-out rows.
    assert 4 * 3 * 2 * 48 <= parts["adapters"].trained <= 4 * 4 * 2 * 48
    assert parts["scores"].scored % (5 * 48) == 0 < parts["scores"].scored
    for key in ("trained", "scored", "flops"):
        each = [getattr(parts[name], key) for name in row.parts]
        assert getattr(row.total, key) == sum(each) and max(each) > 0
    took = sum(parts[name].seconds for name in row.parts) + row.solving
    assert row.total.seconds == pytest.approx(took) and took > 0
    plan = launch(
        finished, f"--config.tasks.source={config['tasks']['source']}", "--dry_run"
    ).stdout
    (line,) = [line for line in plan.splitlines() if line.startswith("taskpgm-pmi ")]
    assert f"{row.total.trained:,}" in line and f"{row.total.scored:,}" in line
