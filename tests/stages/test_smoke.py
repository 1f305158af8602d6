"""The whole flow once, as small as it gets: the first test to run after any change."""

import json

from .launching import launch, write_tasks


def test_every_stage_leaves_what_the_next_one_reads(tmp_path):
    workdir = tmp_path / "run"
    launch(workdir, f"--config.tasks.source={write_tasks(tmp_path / 'tasks')}")
    weights = json.loads((workdir / "mixture" / "weights.json").read_text())
    assert abs(sum(weights["weights"]) - 1) < 1e-9
    assert len(json.loads((workdir / "evaluation" / "results.json").read_text()))
    assert "<html" in (workdir / "report" / "index.html").read_text()
