"""A finished workdir as a swarm for the study of predictors."""

import json
import runpy
import sys

import numpy as np
import pytest

from tests.stages.launching import ROOT

EXPERIMENTS = ROOT / "experiments"


@pytest.fixture
def collect(monkeypatch):
    """Runs experiments/real/collect.py with these words."""
    main = runpy.run_path(str(EXPERIMENTS / "real" / "collect.py"))["main"]

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["collect.py", *map(str, words)])
        main()

    return run


@pytest.mark.pipeline
def test_judged_models_are_a_swarm(collect, finished, tmp_path):
    collect(finished, tmp_path / "swarm", "--budget", 24)
    load = runpy.run_path(str(EXPERIMENTS / "swarm.py"))["load"]
    swarm = load(tmp_path / "swarm")
    results = json.loads((finished / "evaluation" / "results.json").read_text())
    assert sorted(swarm.mixture) == sorted(results["runs"]) and swarm.budget == 24
    for name, loss in zip(swarm.mixture, swarm.measured, strict=True):
        judged = results["runs"][name]["tasks"]
        np.testing.assert_allclose(loss, [judged[task]["loss"] for task in swarm.names], atol=1e-5)
    assert swarm.seen is not None and swarm.log_likelihood.shape[0] == len(swarm.names)


@pytest.mark.pipeline
def test_what_is_not_there_is_said(collect, finished, tmp_path):
    with pytest.raises(SystemExit, match="weights.json is not there: name a workdir"):
        collect(tmp_path, tmp_path / "swarm", "--budget", 24)
    with pytest.raises(SystemExit, match="no judged model of 25 examples"):
        collect(finished, tmp_path / "swarm", "--budget", 25)
    assert not (tmp_path / "swarm").exists()
