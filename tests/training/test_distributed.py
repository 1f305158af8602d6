"""Two processes on loopback train the curve of one, through a checkpoint."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from taskpgm.models import init_params, logical_axes
from taskpgm.training.checkpoint import Manager
from taskpgm.training.mesh import ShardingRules, make_mesh
from taskpgm.training.optimizer import make_optimizer

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


def train_together(processes, folder):
    """The curve [(step, loss)] of a run by this many processes, stopped and resumed half-way."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "XLA_"))}
    environment["PYTHONPATH"] = str(ROOT)
    port = free_port()
    running = [
        subprocess.Popen(
            [sys.executable, str(DRIVER), port, str(processes), str(i), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return json.loads(outputs[0][0].splitlines()[-1])


def test_two_processes_train_the_curve_of_one(tmp_path, tiny):
    one = load_driver().train(tmp_path / "one", (6,))
    two = train_together(2, tmp_path / "two")
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
        ShardingRules().shardings(mesh, axes, shapes),
    )
    saved = [Manager(tmp_path / name / "checkpoints") for name in ("one", "two")]
    assert [manager.newest() for manager in saved] == [6, 6]
    opt_state = jax.eval_shape(optimizer.transform.init, shapes)
    tree = {"step": jax.ShapeDtypeStruct((), np.int32), "trainable": like, "opt_state": opt_state}
    a, b = (manager.restore(6, tree)[0] for manager in saved)
    assert b["trainable"]["embedding"].sharding.mesh == mesh and b["step"] == 6
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), a, b)
