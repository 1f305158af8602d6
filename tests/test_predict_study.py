"""The study of predictors runs on any swarm's folder, and names a missing one."""

import json
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from taskpgm.mixture import PredictedLoss
from tests.scripts import EXPERIMENTS, script

N, EXAMPLES, BUDGET = 5, 8, 500

pytestmark = pytest.mark.slow


@pytest.fixture
def predict(monkeypatch):
    """predict.py as a module, with few of its settings."""
    with script(EXPERIMENTS / "predict.py") as module:
        monkeypatch.setattr(module, "GRID", {"floor": (0.0, 0.5), "pace": (1.0, 4.0)})
        monkeypatch.setattr(module, "minimisers", partial(module.minimisers, worlds=2))
        yield module


def write_swarm(folder: Path) -> None:
    """Runs whose losses are those of the law, and a little noise."""
    rng = np.random.default_rng(0)
    family = np.array([0, 0, 1, 2, 3])
    together = family[:, None] == family
    losses = np.where(np.eye(N, dtype=bool), 1.0, np.where(together, 1.5, 3.0))
    task = np.repeat(np.arange(N), EXAMPLES)
    base, sizes, seen = np.full(N, 3.0), np.full(N, 200), np.full(N, 150.0)
    np.savez(
        folder / "scores.npz",
        log_likelihood=-losses[:, task] * 4,
        tokens=np.full(len(task), 4),
        task=task,
        names=[f"task{k}" for k in range(N)],
        families=family.astype(str),
        sizes=sizes,
        base_loss=base,
        seen=seen,
    )
    law = PredictedLoss.from_losses(losses, base, budget=BUDGET, sizes=sizes, seen=seen)
    with (folder / "runs.jsonl").open("w") as file:
        for i in range(10):
            counts = rng.multinomial(BUDGET, rng.dirichlet(np.ones(N)))
            for seed in range(2):
                loss = law.per_task(counts / BUDGET) + 0.01 * rng.normal(size=N)
                run = {
                    "name": f"dir{i}" if i % 2 else f"pmi-0.{i}",
                    "seed": seed,
                    "counts": counts.tolist(),
                    "rows": 99,
                }
                file.write(json.dumps(run | {"loss": loss.tolist()}) + "\n")


def test_the_tables_hold_what_the_runs_say(predict, tmp_path, monkeypatch):
    write_swarm(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "Kept.\n<!-- tables: experiments/predict.py -->\nstale rows\n<!-- end of tables -->\nToo."
    )
    monkeypatch.setattr(sys, "argv", ["predict.py", str(tmp_path), "--out", str(page)])
    predict.main()
    text = page.read_text()
    assert text.startswith("Kept.") and text.endswith("Too.") and "stale rows" not in text
    row = re.search(r"\| \*\*PredictedLoss\*\* \| ([\d.]+) \[.*?\] \| ([\d.]+)", text)
    assert float(row[1]) > 0.95 and float(row[2]) > 0.95
    distance = re.search(r"\| distance from uniform \| (-?[\d.]+)", text)
    assert float(distance[1]) < float(row[1])
    assert "constants chosen on one half" in text
    assert len(re.findall(r"^\| pmi \| 0\.\d", text, re.MULTILINE)) == 5


@pytest.mark.parametrize("words", ["HERE/nowhere", "HERE --trained HERE/nowhere.jsonl"])
def test_a_missing_folder_or_file_is_named(predict, tmp_path, monkeypatch, capsys, words):
    words = words.replace("HERE", str(tmp_path)).split()
    monkeypatch.setattr(sys, "argv", ["predict.py", *words])
    with pytest.raises(SystemExit) as end:
        predict.main()
    assert end.value.code not in (None, 0)
    assert "nowhere" in f"{end.value.code} {capsys.readouterr().err}"
