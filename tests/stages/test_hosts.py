"""launch.py as two processes: every stage makes what one process makes on the same mesh."""

import json
import resource
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from taskpgm.models import load_hf
from taskpgm.training.metrics import read
from tests.stages.forks import Fork
from tests.stages.launching import end_pair, launch, own_lines, start_pair

pytestmark = pytest.mark.pipeline

HERE = socket.gethostname()
MESH = ("--config.mesh.data=2", "--config.mesh.fsdp=2")
# Every checkpoint has both processes wait for each other a dozen times.
SHORT = (
    "--config.train.steps=4",
    "--config.train.checkpoint_every=4",
    "--config.adapters.checkpoint_every=4",
)
# Two processes add up in another order than the devices of one.
close = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def options(tasks_folder) -> list[str]:
    compared = "--config.compare=('uniform', 'taskpgm-pmi')"
    return [f"--config.tasks.source={tasks_folder}", compared, *MESH, *SHORT]


@pytest.fixture(scope="module")
def one(options, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("hosts") / "one"
    launch(workdir, *options, "--stage=evaluation", devices=4)
    return workdir


@pytest.fixture(scope="module")
def two(options, tmp_path_factory) -> Path:
    """Two processes: one is killed, both are stopped by SIGTERM, one fails, and the same command
    goes on to the end."""
    workdir = tmp_path_factory.mktemp("hosts") / "two"
    pair = start_when(workdir, options, "base/key.json", before=LATE)
    pair[1].kill()
    said = ends(pair, killed=1)[0]
    assert said.startswith(f"error: process 1 on {HERE} ended without a word")

    pair = start_when(workdir, options, "base/done.json")
    for process in pair:
        process.send_signal(signal.SIGTERM)
    end_pair(pair, code=75)

    # Its disk takes no more of the second: the first waits for it in the middle of a save.
    pair = start_when(workdir, options, "adapters/*/key.json")
    resource.prlimit(pair[1].pid, resource.RLIMIT_FSIZE, (0, 0))
    first, second = ends(pair)
    assert second.startswith("error: ")
    assert first == f"error: process 1 on {HERE} failed, and all others with it: {second[7:]}"

    assert not (workdir / "report").exists()
    end_pair(start_pair(workdir, *options))
    return workdir


# Looks for tasks.json when the first process has had the time to write it.
LATE = """
import time
from taskpgm.stages.tasks import TaskFile
TaskFile.is_done = lambda self, on_time=TaskFile.is_done: time.sleep(1) or on_time(self)
"""


def start_when(workdir: Path, options: list[str], mark: str, before: str = "") -> list[Fork]:
    """Two processes that run, once `mark` has a match in the workdir; `before`: what the second
    runs first."""
    pair = start_pair(workdir, *options, before=before)
    while not any(workdir.glob(mark)):
        assert all(process.poll() is None for process in pair), (mark, ends(pair))
        time.sleep(0.02)
    return pair


def ends(pair: list[Fork], killed: int | None = None) -> list[str]:
    """The last line of stderr of each; asserts that those that were not killed end with 1, and that
    all lines before it, at most, tell of the progress."""
    try:
        said = [own_lines(process.communicate(timeout=120)[1]) for process in pair]
    finally:
        for process in pair:
            process.kill()
    for i, process in enumerate(pair):
        assert process.returncode == (-signal.SIGKILL if i == killed else 1)
        *progress, _ = said[i].splitlines() or [""]
        assert all(" of " in line and "error" not in line for line in progress), said[i]
    return [(text.splitlines() or [""])[-1] for text in said]


def same(a, b) -> None:
    """Two values of JSON, numbers but for rounding; times aside."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds"}:
            same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, float):
        np.testing.assert_allclose(a, b, **close)
    else:
        assert a == b


@pytest.mark.parametrize(
    "name", ["tasks.json", "mixture/weights.json", "evaluation/results.json", "config.json"]
)
def test_files_are_alike(one, two, name):
    same(*(json.loads((workdir / name).read_text()) for workdir in (one, two)))


@pytest.mark.parametrize("name", ["pmi", "jsd", "pmi-resamples", "jsd-resamples"])
def test_affinities_are_alike(one, two, name):
    a, b = (np.load(workdir / "affinity" / f"{name}.npz") for workdir in (one, two))
    assert sorted(a.files) == sorted(b.files)
    for key in set(a.files) - {"tasks"}:
        np.testing.assert_allclose(a[key], b[key], **close)


@pytest.mark.parametrize("name", ["base", "runs/uniform/hf", "runs/taskpgm-pmi/hf"])
def test_models_are_alike(one, two, name):
    (config, a), (other, b) = (load_hf(workdir / name) for workdir in (one, two))
    assert config == other
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **close), a, b)
    files = {path.name for path in (one / name).iterdir() if path.is_file()}
    assert files == {path.name for path in (two / name).iterdir() if path.is_file()}
    assert {"tokenizer.json", "config.json", "model.safetensors"} <= files


def test_batches_are_alike(one, two):
    """As many scored tokens in every step: no row is there twice, none is missing."""
    logs = sorted(path.relative_to(one) for path in one.rglob("metrics.jsonl"))
    assert len(logs) == 1 + 2 + 2  # the base, two groups of adapters, two runs
    for log in logs:
        a, b = (
            [{k: row[k] for k in ("step", "tokens", "loss")} for row in read(w / log)]
            for w in (one, two)
        )
        assert a
        same(a, b)


def test_what_is_done_is_not_done_again(two, options):
    before = {path: path.stat().st_mtime_ns for path in two.rglob("done.json")}
    said, _ = end_pair(start_pair(two, *options, "--stage=evaluation"))
    assert {path: path.stat().st_mtime_ns for path in two.rglob("done.json")} == before
    assert said.count("done already") == 5 + 2 + 3  # stages, runs, evaluations


def test_processes_that_were_told_different_things_are_named(options, tmp_path):
    pair = start_pair(tmp_path / "run", *options, second=("--config.seed=1",))
    _, error = end_pair(pair, code=1)
    assert error.startswith("error: the config of process 1 is not that of process 0")
