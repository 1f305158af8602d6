"""Kill it anywhere, start the same command: the same bits come out, and nothing is done twice."""

import os
import re
import shutil
import signal
import time

import pytest

from tests.stages.launching import command, launch, start_launch

pytestmark = pytest.mark.pipeline

# What must have appeared in the workdir when the run is killed: one moment in every long stage.
# A scheduler's notice is heard in every stage, also where nothing is trained.
MOMENTS = (
    ("base/training/checkpoints/[0-9]/_CHECKPOINT_METADATA", signal.SIGKILL),
    ("adapters/*/done.json", signal.SIGKILL),
    ("affinity/scores/*", signal.SIGTERM),
    ("affinity/scores/*", signal.SIGKILL),
    ("runs/uniform/checkpoints/[0-9]/_CHECKPOINT_METADATA", signal.SIGKILL),
    ("evaluation/base/key.json", signal.SIGINT),
)


def kill_when(workdir, pattern: str, notice: signal.Signals, options: list[str]) -> None:
    """Starts the run and kills it as soon as `pattern` has a match in the workdir."""
    process = start_launch(command(workdir, *options))
    try:
        end = time.monotonic() + 200
        while process.poll() is None and not any(workdir.glob(pattern)):
            assert time.monotonic() < end, f"{pattern} never came"
            time.sleep(0.01)
    finally:
        process.send_signal(notice)
        process.communicate(timeout=60)
    assert process.returncode == {signal.SIGTERM: 75, signal.SIGINT: 130}.get(notice, -notice)
    assert any(workdir.glob(pattern)), f"the run ended without {pattern}"


def weights(workdir) -> dict[str, bytes]:
    """All weights that a run leaves: the base, and the model of every mixture."""
    files = [workdir / "base" / "model.safetensors", *workdir.glob("runs/*/hf/model.safetensors")]
    return {str(file.relative_to(workdir)): file.read_bytes() for file in files}


def test_a_run_killed_in_every_stage_ends_in_the_same_bits(finished, tasks_folder, tmp_path):
    workdir = tmp_path / "run"
    options = [f"--config.tasks.source={tasks_folder}"]
    for pattern, notice in MOMENTS:
        kill_when(workdir, pattern, notice, options)
    launch(workdir, *options, "--stage=evaluation")
    expected = weights(finished)
    assert len(expected) == 5  # the base and four mixtures
    assert weights(workdir) == expected
    for name in ("mixture/weights.json", "evaluation/results.json"):
        without_times = [
            [line for line in (w / name).read_text().splitlines() if '"seconds"' not in line]
            for w in (workdir, finished)
        ]
        assert without_times[0] == without_times[1]


def test_what_is_done_is_not_done_again(finished, tasks_folder, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("done.json")}
    said = launch(workdir, f"--config.tasks.source={tasks_folder}", "--stage=evaluation").stdout
    assert {p: p.stat().st_mtime_ns for p in workdir.rglob("done.json")} == before
    for stage in ("tasks", "base", "adapters", "affinity", "mixture"):
        assert f"{stage}  done already" in said
    assert said.count("done already") >= 5 + 4 + 5  # and each run, and each evaluation


def test_damage_ends_in_the_way_out_and_it_leads_out(finished, tasks_folder, tmp_path):
    workdir, options = tmp_path / "run", [f"--config.tasks.source={tasks_folder}"]
    shutil.copytree(finished, workdir)
    shutil.rmtree(workdir / "affinity")  # so that the adapters, and below a run's model, are read
    (workdir / "evaluation" / "uniform" / "done.json").unlink()
    for damaged, mark in (
        ("base/model.safetensors", "base/done.json"),
        ("adapters/upper/weights/**/d/*", "adapters/upper/done.json"),
        ("mixture/weights.json", "mixture/done.json"),
        ("runs/uniform/hf/model.safetensors", "runs/uniform/done.json"),
    ):
        file = max(workdir.glob(damaged), key=lambda path: path.stat().st_size)
        os.truncate(file, file.stat().st_size // 2)
        said = launch(workdir, *options, code=1).stderr.splitlines()
        (line,) = [x for x in said if not re.match(r"[\w /]+: \d+ of \d+", x)]  # beside progress
        told = str(workdir / mark)
        assert line.endswith(f"remove {told} and start the same command again")
        assert damaged.split("/**")[0] in line
        (workdir / mark).unlink()
    launch(workdir, *options, "--stage=evaluation")
    assert weights(workdir) == weights(finished)
    for name in ("mixture/weights.json", "affinity/pmi.npz"):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes()
