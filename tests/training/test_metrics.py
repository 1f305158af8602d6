"""metrics.jsonl, and the numbers in it."""

import contextlib
import importlib.machinery
import json
import os
import struct
import subprocess
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from taskpgm.training.boards import check_board
from taskpgm.training.metrics import StepLog, Writer, read


def test_rewind_drops_later_and_cut_lines(tmp_path):
    writer = Writer(tmp_path)
    for step in range(1, 6):
        writer.write(step, {"loss": np.float32(step) / 3, "lr": jnp.array([0.5, 0.25])})
    writer.close()
    with open(writer.path, "a") as file:
        file.write('{"step": 6, "lo')
    assert [row["step"] for row in read(writer.path)] == [1, 2, 3, 4, 5]
    Writer(tmp_path, step=3).close()
    rows = read(writer.path)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["lr"] == [0.5, 0.25] and np.float32(rows[0]["loss"]) == np.float32(1 / 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # tensorboardX's and torch's own
def test_tensorboard_shows_the_same_numbers(tmp_path):
    writer = Writer(tmp_path, step=4, board="tensorboard", name="r")
    writer.write(5, {"loss": 1.5, "lr": np.array([0.5, 0.25])})
    writer.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # TFRecord: length, check sum, event, check sum
        (size,) = struct.unpack("<Q", data[:8])
        event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
        found |= {(event.step, v.tag): v.simple_value for v in event.summary.value}
    assert found == {(5, "loss"): 1.5, (5, "lr/0"): 0.5, (5, "lr/1"): 0.25}


def test_wandb_gets_the_same_numbers(tmp_path, monkeypatch):
    told = []
    run = types.SimpleNamespace(
        log=lambda values, step: told.append((step, values)), finish=lambda: told.append("end")
    )
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.init = lambda **options: told.append(options["name"]) or run
    monkeypatch.setitem(sys.modules, "wandb", module)
    writer = Writer(tmp_path, board="wandb", name="uniform")
    writer.write(5, {"loss": 1.5})
    writer.close()
    assert told == ["uniform", (5, {"loss": 1.5}), "end"]


def test_a_board_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(ValueError, match="train.log='board' is none of tensorboard, wandb"):
        check_board("board")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'taskpgm\[wandb\]'"):
        check_board("wandb")


@pytest.fixture
def writer():
    """folder, options -> a Writer, closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(
            contextlib.closing(Writer(*args, **options))
        )


def values(loss, tokens):
    return {
        "loss": jnp.array(loss, jnp.float32),
        "tokens": jnp.array(tokens, jnp.float32),
        "grad_norm": jnp.ones_like(jnp.array(loss)),
        "lr": jnp.float32(0.1),
    }


def test_loss_is_the_mean_over_scored_tokens(tmp_path, writer):
    log = StepLog("r", writer(tmp_path), every=2)
    log.add(0, values(1.0, 30), 64)
    log.add(1, values(3.0, 10), 64)
    log.collect(leave=2)
    assert not read(log.writer.path)
    log.collect(leave=0)
    row = read(log.writer.path)[0]
    assert row["step"] == 2 and row["loss"] == 1.5 and row["tokens"] == 40
    assert row["tokens_per_second"] > 0 and 0 <= row["data_wait"] <= 1


def test_a_line_that_a_restart_cuts_through_is_the_same(tmp_path, writer):
    whole = StepLog("r", writer(tmp_path / "a"), every=3)
    first = StepLog("r", writer(tmp_path / "b"), every=3)
    losses = [[1 / 3, 0.7], [0.9, 1 / 7], [0.2, 0.3]]
    for step in (0, 1):
        for log in (whole, first):
            log.add(step, values(losses[step], [step + 3.0, 5.0]), 8)
            log.collect(leave=0)
    partial = json.loads(json.dumps(first.partial))
    first.writer.close()
    second = StepLog("r", writer(tmp_path / "b", step=2), every=3, partial=partial)
    for log in (whole, second):
        log.add(2, values(losses[2], [2.0, 5.0]), 8)
        log.collect(leave=0)
    keys = ("step", "loss", "tokens", "grad_norm", "lr")
    a, b = (read(log.writer.path) for log in (whole, second))
    assert [[row[key] for key in keys] for row in a] == [[row[key] for key in keys] for row in b]


def test_nan_names_run_step_and_task(tmp_path, writer):
    log = StepLog("uniform", writer(tmp_path), every=10)
    log.add(41, values(float("nan"), 1.0), 8)
    with pytest.raises(ValueError, match="NaN at step 41 of run uniform; lower the learning rate"):
        log.collect(leave=0)
    log.add(42, values([1.0, float("inf")], [1.0, 1.0]), 8)
    with pytest.raises(ValueError, match="infinite at step 42 of run uniform, task 1 of the group"):
        log.collect(leave=0)


def test_torch_is_not_imported():
    """tensorboardX would import it, and a user who has torch installed should not wait for that."""
    code = "import sys, taskpgm.training; sys.exit('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_mfu_counts_the_unembedding_of_scored_positions(tmp_path, writer, monkeypatch):
    monkeypatch.setattr("taskpgm.training.metrics.peak_flops", lambda: 1e3)
    log = StepLog("r", writer(tmp_path), every=2, flops_per_token=lambda share: 10 + 4 * share)
    for step in range(4):
        log.add(step, values(1.0, 16), 64)
        log.collect(leave=0)
    for row in read(log.writer.path):
        assert row["mfu"] == pytest.approx(11 * row["tokens_per_second"] / 1e3)
