"""The whole flow once, as small as it gets: the first test to run after any change."""

import json

import pytest

from .launching import launch, write_tasks

pytestmark = pytest.mark.pipeline

ROWS = ("uniform", "taskpgm-pmi", "taskpgm-jsd", "taskpgm-transfer:r=1", "taskpgm-predicted")


def test_every_stage_leaves_what_the_next_one_reads(tmp_path):
    workdir = tmp_path / "run"
    launch(
        workdir,
        f"--config.tasks.source={write_tasks(tmp_path / 'tasks')}",
        f"--config.compare={ROWS}",
        forked=False,
    )
    weights = json.loads((workdir / "mixture" / "weights.json").read_text())
    assert abs(sum(weights["weights"]) - 1) < 1e-9
    losses = (workdir / "affinity" / "losses.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in losses[:2]] == ["model", "base"]
    assert len(losses) == 2 + len(weights["tasks"])
    assert len(json.loads((workdir / "evaluation" / "results.json").read_text()))
    assert "<html" in (workdir / "report" / "index.html").read_text()
