"""A harness that fails costs no measure and no other benchmark."""

import json
import shutil

import pytest

from taskpgm import evaluation, stages
from taskpgm.stages import checks
from tests.stages.tiny_config import get_config


@pytest.mark.pipeline
@pytest.mark.parametrize("failing", ["first", "second"])
def test_measures_and_other_benchmarks_survive(
    failing, finished, tasks_folder, tmp_path, monkeypatch
):
    asked = []

    def run_harness(config, params, tokenizer, names, **_):
        asked.append(names[0])
        if names[0] == failing:
            raise OSError(f"{failing}: the hub is gone")
        return {names[0]: {"acc": 0.5}}

    monkeypatch.setattr(checks, "check_harness", lambda *_: None)
    monkeypatch.setattr(evaluation, "run_harness", run_harness)
    config = get_config()
    config.tasks.source = str(tasks_folder)
    config.mesh.data = -1
    config.compare = ("uniform",)
    config.evaluation.harness = ("first", "second")
    measures = shutil.ignore_patterns("evaluation", "report")
    workdir = shutil.copytree(finished, tmp_path / "run", ignore=measures)
    with pytest.raises(OSError, match="the hub is gone"):
        stages.run(config, str(workdir))
    for name in ("base", "uniform"):
        measures = json.loads((workdir / "evaluation" / name / "measures.json").read_text())
        assert set(measures["tasks"]) == {"upper", "shout", "reverse", "length"}
    whole = (workdir / "evaluation" / "base" / "measures.json").read_bytes()
    left, failing_name = [x for x in ("first", "second") if x != failing], failing
    failing = ""
    asked.clear()
    stages.run(config, str(workdir), last="evaluation")
    # What was there is not asked again: of the base the first, where it had come before.
    expected = 4 - (failing_name == "second")
    assert len(asked) == expected and set(left) <= set(asked)
    assert (workdir / "evaluation" / "base" / "measures.json").read_bytes() == whole
    found = json.loads((workdir / "evaluation" / "results.json").read_text())
    assert found["base"]["harness"] == {"first": {"acc": 0.5}, "second": {"acc": 0.5}}
    assert found["runs"]["uniform"]["harness"] == found["base"]["harness"]
