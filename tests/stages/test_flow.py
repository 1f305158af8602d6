"""The loop that skips or makes, the plan, and what one stage must not do to another."""

import json
import re
import shutil
from pathlib import Path

import pytest

from taskpgm import stages
from taskpgm.stages.context import Context, spread
from taskpgm.stages.devices import DEVICES, machine, mesh_shape
from taskpgm.stages.mixture import artefacts as mixtures
from taskpgm.stages.runs import artefacts as run_models
from taskpgm.stages.steps import run_steps
from tests.stages.launching import launch
from tests.stages.tiny_config import get_config

pytestmark = pytest.mark.usefixtures("one_tokenizer")


def config_of(folder: Path, **changes):
    config = get_config()
    config.tasks.source = str(folder)
    config.mesh.data = -1
    config.update(changes)
    return config


def plan(capsys, config, workdir, device) -> str:
    """What --dry_run prints."""
    stages.run(config, str(workdir), dry_run=True, device=device)
    assert not Path(workdir).exists()
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["h100x8", "v5e-64", "cpu2", "a100", "h200x4", "v5p-128"])
def test_a_device_that_is_not_here_can_be_planned_for(name, tasks_folder, tmp_path, capsys):
    said = plan(capsys, config_of(tasks_folder), tmp_path / "run", name)
    for stage in ("base", "adapters", "affinity", "runs", "evaluation"):
        line = next(x for x in said.splitlines() if x.startswith(stage))
        assert "to do" in line and re.search(r"\d h", line), line
    assert "40% MFU" in said


@pytest.mark.parametrize("name", ["h100y8", "gpu", "v5e-0", "", "x8", "h100x"])
def test_a_device_that_nobody_knows_is_refused(name):
    with pytest.raises(ValueError, match="name one of h200, h100"):
        machine(name)


def test_devices_have_sane_figures():
    for peak, vector, memory, host in DEVICES.values():
        assert peak >= vector > 1e10 and memory >= 1 and host >= 1
    assert machine("h100x8").count == 8 and machine("v5e-64").peak == 64 * 197e12
    assert machine("cpu2").count == 1  # its cores are one device


@pytest.mark.parametrize(
    ("section", "key", "value", "said"),
    [
        ("mixture", "budget", 10**6, "mixture.budget=1000000 is larger"),
        ("mesh", "fsdp", 3, "mesh.fsdp=3"),
        ("embedded", "hidden_size", 65536, "embedded.batch_size or tasks.length"),
    ],
)
def test_a_plan_says_what_does_not_fit_and_refuses_nothing(
    section, key, value, said, tasks_folder, tmp_path, capsys
):
    config = config_of(tasks_folder)
    config[section][key] = value
    text = plan(capsys, config, tmp_path / "run", "v5e-1")
    assert any(x.startswith("does not fit: ") and said in x for x in text.splitlines()), text


def test_a_device_is_for_a_plan(tasks_folder, tmp_path):
    with pytest.raises(ValueError, match="--dry_run"):
        stages.run(config_of(tasks_folder), str(tmp_path / "run"), device="h100x8")


def test_a_mesh_that_takes_what_is_left():
    config = get_config()
    config.mesh.data, config.mesh.fsdp = -1, 2
    assert mesh_shape(config, 8)[0] == {"task": 1, "data": 4, "fsdp": 2, "tensor": 1}
    assert mesh_shape(config, 8)[1] is None
    assert "do not multiply to 7" in mesh_shape(config, 7)[1]


def test_examples_that_stand_for_all_are_spread():
    assert spread(3, 64) == [0, 1, 2]
    picked = spread(1000, 64)
    assert len(set(picked)) == 64 and picked[0] == 0 and 980 < picked[-1] < 1000


@pytest.mark.pipeline
def test_one_more_mixture_changes_no_other_run(finished, tasks_folder, tmp_path):
    """Steps follow from budget and batch alone, so keys of runs do not move."""
    workdir = shutil.copytree(finished, tmp_path / "run")

    def runs(compare):
        config = config_of(tasks_folder, compare=compare)
        config.train.steps = 0
        context = Context(config, workdir, [])
        made = {x.title: (x.key, x.steps) for x in run_models(context)}
        return run_steps(context), made

    first = json.loads((workdir / "mixture" / "weights.json").read_text())["mixtures"]
    steps, whole = runs(tuple(first))
    assert steps >= 1 and {x for _, x in whole.values()} == {steps}
    more = config_of(tasks_folder, compare=(*first, "permuted-pmi"))
    said = launch(
        workdir,
        f"--config.tasks.source={tasks_folder}",
        f"--config.compare={more.compare}",
        "--stage=runs",
    ).stdout
    assert all(f"runs  {name}: done already" in said for name in first)
    assert "permuted-pmi: trained" in said
    _, after = runs((*first, "permuted-pmi"))
    assert {name: after[name] for name in whole} == whole


def test_a_mixture_that_is_not_solved_has_no_run_that_is_done(tasks_folder, tmp_path):
    context = Context(config_of(tasks_folder), tmp_path / "run", [])
    (mixture,) = mixtures(context)
    assert not mixture.is_done()
    assert all(run.steps == 0 and not run.is_done() for run in run_models(context))
