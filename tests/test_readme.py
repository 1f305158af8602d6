"""What the README shows works: its Python, and the keys of its commands."""

import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest

from taskpgm.stages import default_config

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def shown(tmp_path, monkeypatch):
    """The variables of the README's Python, run in a folder with the files that it reads."""
    monkeypatch.chdir(tmp_path)
    counts = [5, 0, 12, 3]
    noise = np.random.default_rng(0).normal(size=(4, 4))
    np.save("affinity.npy", noise + noise.T)
    np.save("losses.npy", 2.0 - np.eye(4))
    folder = Path("runs/quickstart/mixture")
    folder.mkdir(parents=True)
    weights = [count / sum(counts) for count in counts]
    (folder / "weights.json").write_text(json.dumps({"weights": weights, "counts": counts}))
    parts = [datasets.Dataset.from_dict({"task": [i] * 15}) for i in range(4)]
    names = {"parts": parts}
    for block in PYTHON:
        exec(block, names)
    return names


def test_the_mathematics_alone(shown):
    assert abs(shown["solution"].weights.sum() - 1) < 1e-12
    assert shown["allocate"](shown["solution"].weights, budget=25_000).sum() == 25_000


def test_the_predicted_loss(shown):
    # Four tasks that have nothing to do with each other.
    found = shown["law"].minimise(prior=np.full(4, 0.25))
    np.testing.assert_allclose(found.weights, 0.25, atol=1e-6)


def test_bounds_and_a_prior(shown):
    assert shown["bounded"].weights.max() <= 0.9 + 1e-12 and shown["bounded"].gap < 1e-9
    assert shown["near"].weights.min() > 0 and shown["near"].gap < 1e-8


def test_other_trainers_get_the_mixture_that_was_asked_for(shown):
    assert np.bincount(shown["mixed"]["task"], minlength=4).tolist() == [5, 0, 12, 3]
    drawn = [row["task"] for row in shown["stream"].take(2000)]
    share = np.bincount(drawn, minlength=4) / 2000  # more than all parts hold together
    np.testing.assert_allclose(share, [0.25, 0, 0.6, 0.15], atol=0.04)


def test_every_key_of_a_command_is_one_of_the_config():
    known = default_config()
    for key in re.findall(r"--config\.([\w.]+)", README):
        at = known
        for part in key.split("."):
            assert part in at, key
            at = at[part]


def test_every_recipe_is_in_the_table():
    listed = set(re.findall(r"`(\w+\.py)`", README))
    assert {path.name for path in (Path(__file__).parents[1] / "configs").glob("*.py")} <= listed
