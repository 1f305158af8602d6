"""Two processes on loopback train what one trains, through a checkpoint, and stop together."""

import json
import signal
import time

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
from tests.stages.forks import Fork, free_port
from tests.training import distributed_driver as driver

pytestmark = pytest.mark.slow

PROGRAM = """
import sys
from tests.training.distributed_driver import main
main(*sys.argv[1:])
"""


def start(what, folder):
    """Runs a function of the driver in two processes."""
    settings = {"jax_num_cpu_devices": 4}
    words = ["-c", what, str(folder), str(free_port())]
    return [Fork(PROGRAM, [*words, str(i)], settings) for i in range(2)]


def end(running, code=0):
    """What the first of the processes printed last, in JSON."""
    try:
        outputs = [process.communicate(timeout=240) for process in running]
    finally:
        for process in running:
            process.kill()
    for process, (_, errors) in zip(running, outputs, strict=True):
        assert process.returncode == code, errors[-3000:]
    return json.loads(outputs[0][0].splitlines()[-1])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The folder and the curve of two processes, which have trained on until one got a SIGTERM."""
    folder = tmp_path_factory.mktemp("pair")
    running = start("train_and_on", folder)
    log = folder / "on" / "metrics.jsonl"
    while not (log.is_file() and log.stat().st_size):
        assert all(process.poll() is None for process in running), end(running)
        time.sleep(0.02)
    running[1].send_signal(signal.SIGTERM)
    return folder, end(running, RESUMABLE)


def test_two_processes_train_the_curve_of_one(pair, tmp_path, tiny):
    folder, two = pair
    one = driver.train(tmp_path, (6,))
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
    saved = [Checkpoints(path / "checkpoints") for path in (tmp_path, folder)]
    opt_state = jax.eval_shape(optimizer.transform.init, shapes)
    tree = {"step": jax.ShapeDtypeStruct((), np.int32), "trainable": like, "opt_state": opt_state}
    (first, a, _), (second, b, _) = (checkpoints.restore_newest(tree) for checkpoints in saved)
    assert first == second == 6
    assert b["trainable"]["embedding"].sharding.mesh == mesh and b["step"] == 6
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), a, b)


def test_a_group_lies_over_both_processes(tmp_path):
    """A task each; adapters saved by both are those of one process."""
    one = driver.train_group(tmp_path / "one")
    two = end(start("train_group", tmp_path / "two"))
    assert np.shape(two) == (4, 2) and two[0][0] != two[0][1]
    np.testing.assert_allclose(two, one, rtol=1e-5)
    like = jax.eval_shape(lambda: driver.init_lora(driver.ADAPTED, jax.random.key(0)))
    a, b = (restore_tree(tmp_path / name / "first", like) for name in ("one", "two"))
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(a["layers"]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), a, b)


def test_sigterm_to_one_stops_both_after_the_same_step(pair):
    folder = pair[0] / "on"
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert Checkpoints(folder / "checkpoints").steps()[-1] == last > 0
