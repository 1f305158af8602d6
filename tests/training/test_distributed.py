"""Two processes on loopback train what one trains, through a checkpoint, and stop together."""

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from taskpgm.interrupts import RESUMABLE
from taskpgm.models import init_params, logical_axes
from taskpgm.models.sharding import shardings_of
from taskpgm.training import restore_tree
from taskpgm.training.checkpoint import Checkpoints
from taskpgm.training.mesh import make_mesh
from taskpgm.training.optimizer import make_optimizer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("distributed_driver.py")


def load_driver():
    spec = importlib.util.spec_from_file_location("distributed_driver", DRIVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return str(s.getsockname()[1])


def start(what, folder, processes=2):
    """Runs a function of the driver in this many processes."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "XLA_"))}
    environment["PYTHONPATH"] = str(ROOT)
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, str(DRIVER), port, str(processes), str(i), str(folder), what],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]


def end(running, code=0):
    """What the first of the processes printed last."""
    try:
        outputs = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == code, errors[-3000:]
    return outputs[0][0].splitlines()[-1] if code == 0 else None


def test_two_processes_train_the_curve_of_one(tmp_path, tiny):
    one = load_driver().train(tmp_path / "one", (6,))
    two = json.loads(end(start("train", tmp_path / "two")))
    assert [step for step, _ in two] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([x for _, x in two], [x for _, x in one], rtol=1e-5)

    # What the pair saved is restored by one process, on another mesh.
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    axes = logical_axes(tiny)
    optimizer = make_optimizer()
    shapes = jax.eval_shape(lambda: init_params(tiny, jax.random.key(0)))
    like = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
        shapes,
        shardings_of(axes, shapes, mesh),
    )
    saved = [Checkpoints(tmp_path / name / "checkpoints") for name in ("one", "two")]
    opt_state = jax.eval_shape(optimizer.transform.init, shapes)
    tree = {"step": jax.ShapeDtypeStruct((), np.int32), "trainable": like, "opt_state": opt_state}
    (first, a, _), (second, b, _) = (checkpoints.restore_newest(tree) for checkpoints in saved)
    assert first == second == 6
    assert b["trainable"]["embedding"].sharding.mesh == mesh and b["step"] == 6
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), a, b)


def test_a_group_lies_over_both_processes(tmp_path):
    """A task each; adapters saved by both are those of one process."""
    driver = load_driver()
    one = driver.train_group(tmp_path / "one")
    two = json.loads(end(start("train_group", tmp_path / "two")))
    assert np.shape(two) == (4, 2) and two[0][0] != two[0][1]
    np.testing.assert_allclose(two, one, rtol=1e-5)
    like = jax.eval_shape(lambda: driver.init_lora(driver.ADAPTED, jax.random.key(0)))
    a, b = (restore_tree(tmp_path / name / "first", like) for name in ("one", "two"))
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(a["layers"]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), a, b)


def test_sigterm_to_one_stops_both_after_the_same_step(tmp_path):
    running = start("train_on", tmp_path)
    log = tmp_path / "metrics.jsonl"
    while not (log.is_file() and log.stat().st_size):
        assert all(process.poll() is None for process in running), end(running)
        time.sleep(0.02)
    running[1].send_signal(signal.SIGTERM)
    end(running, RESUMABLE)
    last = json.loads(log.read_text().splitlines()[-1])["step"]
    assert Checkpoints(tmp_path / "checkpoints").steps()[-1] == last > 0
