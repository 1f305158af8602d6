"""The loop: resumes exactly, stops when asked, and says what went wrong."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.training import loop, metrics
from taskpgm.training.checkpoint import Checkpoints, restore_tree
from taskpgm.training.state import TrainState
from tests.stages.forks import Fork

DRIVER = """
import sys
from pathlib import Path
from tests.training.resume_driver import main
main(Path(sys.argv[1]))
"""


def run_driver(root):
    driver = Fork(DRIVER, ["-c", str(root)])
    out, err = driver.communicate(timeout=240)
    assert driver.returncode == 0, err[-2000:]
    return json.loads(out.splitlines()[-1])


@pytest.mark.slow
def test_resumes_exactly_after_kills_and_sigterm(tmp_path):
    told = run_driver(tmp_path)
    codes = {name: [code for code, _, _ in attempts] for name, attempts in told.items()}
    assert codes == {"whole": [0], "killed": [-9] * 7 + [0], "stopped": [loop.RESUMABLE, 0]}
    for attempts in told.values():  # each went on from the newest checkpoint that was there
        assert all(began == found for _, found, began in attempts)
    assert len({began for _, _, began in told["killed"]}) >= 4  # and not ever again from the start
    like = {"w": jnp.zeros(16), "step": jnp.int32(0)}
    final = {name: restore_tree(tmp_path / name / "final", like) for name in told}
    assert final["whole"]["step"] == 100
    rows = {name: metrics.read(tmp_path / name / "metrics.jsonl") for name in told}
    assert [row["step"] for row in rows["whole"]] == list(range(4, 101, 4))
    for name in ("killed", "stopped"):
        np.testing.assert_array_equal(final[name]["w"], final["whole"]["w"])  # to the last bit
        for key in ("step", "loss", "lr", "tokens"):
            assert [row[key] for row in rows[name]] == [row[key] for row in rows["whole"]]


@jax.jit
def count(state, frozen, batch, key, total):
    """A step whose state is what it has seen."""
    seen = state.trainable["seen"] * 3 + batch["tokens"].sum()
    loss = jnp.where(batch["tokens"].sum() < 0, jnp.nan, 1.0)
    one = jnp.float32(1.0)
    state = state.replace(step=state.step + 1, trainable={"seen": seen})
    return state, {"loss": loss, "tokens": one, "grad_norm": one, "lr": one}


def start():
    return TrainState(jnp.int32(0), {"seen": jnp.uint32(0)}, {"m": jnp.zeros(())})


def batches(k):
    return {"tokens": np.full((1, 1), k, np.int32)}


def run(directory, step=count, **options):
    options = {"steps": 12, "checkpoint_every": 3, "log_every": 2} | options
    data = options.pop("batches", batches)
    return loop.fit(step, start(), data, directory=directory, name="r", **options)


def test_a_finished_run_returns_at_once(tmp_path):
    first = run(tmp_path)

    def never(*_):
        raise AssertionError

    again = run(tmp_path, step=never, batches=never)
    assert again.trainable["seen"] == first.trainable["seen"] and again.step == 12


def test_a_truncated_newest_checkpoint_is_named_and_passed_over(tmp_path, caplog):
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", steps=9)
    folder = tmp_path / "cut" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["6", "9"]
    file = max((folder / "9").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    file.write_bytes(file.read_bytes()[:10])
    seen = []

    def watched(k):
        seen.append(k)
        return batches(k)

    with caplog.at_level(logging.WARNING, "absl"):
        resumed = run(tmp_path / "cut", batches=watched)
    assert str(folder / "9") in caplog.text
    assert seen == list(range(6, 12))
    assert resumed.trainable["seen"] == whole.trainable["seen"]
    steps = [row["step"] for row in metrics.read(tmp_path / "cut" / "metrics.jsonl")]
    assert steps == [2, 4, 6, 8, 10, 12]


def test_nan_is_named_and_never_saved(tmp_path):
    def poisoned(k):
        return {"tokens": np.full((1, 1), -1 if k == 7 else k, np.int32)}

    with pytest.raises(ValueError, match="loss is NaN at step 7 of run r; lower the learning rate"):
        run(tmp_path, batches=poisoned)
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == 6


def test_an_error_in_the_data_comes_through(tmp_path):
    def broken(k):
        if k == 5:
            raise ValueError("no row 5")
        return batches(k)

    with pytest.raises(ValueError, match="no row 5"):
        run(tmp_path, batches=broken)


def test_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics.Writer, "write", full)
    with pytest.raises(OSError, match="the disk is full: .* could not be written"):
        run(tmp_path)


def test_group_takes_a_seed_and_a_total_each(tmp_path):
    got = {}

    def step(state, frozen, batch, key, total):
        got.update(key=key, total=total)
        return count(state, frozen, batch, key, total)

    run(tmp_path, step=step, seed=[4, 5], totals=[12, 7])
    assert got["key"].shape == (2,) and got["key"][1] == jax.random.key(5)
    assert got["total"].tolist() == [12, 7]
