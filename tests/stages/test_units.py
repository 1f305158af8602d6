"""Several processes share a run: every unit is made once, and the bits are those of one process."""

import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from taskpgm.owner import living, owned
from taskpgm.stages.stage_artefact import Unit
from taskpgm.stages.units import LEASES, Leases, check_no_workers, lease_file, working
from tests.stages.launching import ROOT, command, launch, start_launch


def worker(workdir, *options):
    """A running process of those that share the workdir."""
    return start_launch(command(workdir, "--shared", *options))


def said(workers: list) -> list[str]:
    """What each has printed, once all have ended well."""
    texts = [process.communicate(timeout=400) for process in workers]
    assert [process.returncode for process in workers] == [0] * len(workers), texts
    return [out for out, _ in texts]


def weights(workdir) -> dict[str, bytes]:
    files = [workdir / "base" / "model.safetensors", *workdir.glob("runs/*/hf/model.safetensors")]
    return {str(file.relative_to(workdir)): file.read_bytes() for file in files}


# --- Leases ---------------------------------------------------------------------------------------
def test_what_one_makes_another_leaves_alone(tmp_path):
    leases, made = Leases(tmp_path), []

    def make():
        made.append("a")
        with Leases(tmp_path).lease("runs:a") as mine, Leases(tmp_path).lease("runs:b") as free:
            assert (mine, free) == (False, True)
        assert re.fullmatch(r"process \d+ on .+", leases.holder("runs:a"))

    leases.share([Unit("runs:a", lambda: bool(made), make)])
    leases.share([Unit("runs:a", lambda: bool(made), make)])
    assert made == ["a"] and leases.holder("runs:a") is None
    assert not list((tmp_path / LEASES).iterdir())


def test_the_lease_of_a_dead_process_has_ended(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from taskpgm.owner import take\n"
        "take(Path(sys.argv[1]), sys.argv[2]); os._exit(0)"
    )
    name = lease_file("runs:a")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / LEASES), name], check=True, cwd=ROOT)
    assert (tmp_path / LEASES / name).is_file()
    assert living(tmp_path / LEASES / name) is None
    with Leases(tmp_path).lease("runs:a") as mine:
        assert mine


def test_workers_and_a_launcher_of_its_own_exclude_each_other(tmp_path):
    with working(tmp_path):
        with pytest.raises(ValueError, match="is shared by workers, process .* add --shared"):
            check_no_workers(tmp_path)
    check_no_workers(tmp_path)
    with owned(tmp_path), pytest.raises(ValueError, match="which shares it with nobody"):
        with working(tmp_path):
            pass


# --- Whole runs -----------------------------------------------------------------------------------
@pytest.mark.pipeline
def test_two_workers_and_a_killed_one_end_in_the_bits_of_one_process(
    finished, tasks_folder, tmp_path
):
    workdir, options = tmp_path / "run", [f"--config.tasks.source={tasks_folder}"]
    killed = worker(workdir, *options)
    try:
        end = time.monotonic() + 300
        while not any(workdir.glob("runs/*/checkpoints/[0-9]/_CHECKPOINT_METADATA")):
            assert killed.poll() is None and time.monotonic() < end
            time.sleep(0.01)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=60)
    (left,) = (workdir / LEASES).glob("runs:*.json")  # the unit that it was killed in
    listed = launch(workdir, *options, "--units").stdout
    assert re.search(r"^base +done$", listed, re.M) and re.search(
        r"^adapters:\w+ +done$", listed, re.M
    )
    assert re.search(rf"^{left.stem} +to do$", listed, re.M)

    texts = said([worker(workdir, *options) for _ in range(2)])
    trained = re.findall(r"runs  ([\w-]+): trained", "".join(texts))
    assert sorted(trained) == sorted(set(trained))  # none twice
    assert {f"runs:{name}" for name in trained} >= {left.stem}
    assert weights(workdir) == weights(finished)
    for name in ("mixture/weights.json", "affinity/pmi.npz"):
        assert (workdir / name).read_bytes() == (finished / name).read_bytes()
    assert (workdir / "report" / "index.html").is_file()
    assert not any((workdir / LEASES).iterdir())


@pytest.mark.pipeline
def test_one_unit_alone(finished, tasks_folder, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    options = [f"--config.tasks.source={tasks_folder}"]
    shutil.rmtree(workdir / "runs" / "uniform")
    (workdir / "runs" / "taskpgm-pmi" / "done.json").unlink()
    launch(workdir, *options, "--only=runs:uniform")
    assert weights(workdir) == weights(finished)
    assert not (workdir / "runs" / "taskpgm-pmi" / "done.json").exists()
    for only, message in (
        ("runs:unifrom", "no such unit; --units lists them; did you mean runs:uniform?"),
        ("evaluation:base", "runs:taskpgm-pmi has to be made first"),
        ("train:uniform", "no such unit"),
    ):
        line = launch(workdir, *options, f"--only={only}", code=1).stderr
        assert f"error: --only={only}: " in line and message in line, line
