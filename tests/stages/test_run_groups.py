"""Runs side by side in one program: the models they are alone; a killed group has the same bits."""

import json
import re
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from taskpgm import stages
from taskpgm.stages.context import Context
from taskpgm.stages.run_groups import RunGroup, evened
from taskpgm.stages.run_models import RunModel
from taskpgm.stages.runs import artefacts
from taskpgm.training.metrics import GroupWriter, StepLog, read

from .launching import launch
from .test_resume import kill_when, weights
from .tiny_config import get_config

pytestmark = pytest.mark.usefixtures("one_tokenizer")
TOGETHER = "--config.train.group=4"


def arranged(workdir, tasks_folder, **train) -> list:
    config = get_config()
    config.tasks.source = str(tasks_folder)
    config.train.update(train)
    return list(artefacts(Context(config, workdir, [])))


def without_models(finished, workdir):
    """A copy of a run that has its mixtures, and no model of them."""
    shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns("runs", "evaluation"))
    return workdir


@pytest.fixture(scope="module")
def together(finished, tasks_folder, tmp_path_factory):
    """A copy of a run whose models were trained side by side, and what was said of them."""
    workdir = without_models(finished, tmp_path_factory.mktemp("together") / "run")
    source = f"--config.tasks.source={tasks_folder}"
    return workdir, launch(workdir, source, TOGETHER, "--stage=runs").stdout


def test_groups_are_about_the_same_size():
    assert [evened(51, most) for most in (1, 17, 20, 25, 50, 51, 99)] == [1, 17, 17, 17, 26, 51, 51]


def test_each_member_of_a_group_has_its_own_metrics(tmp_path):
    members = {name: tmp_path / name for name in ("a", "b")}
    writer = GroupWriter(members)
    log = StepLog("a+1", writer, 1, members=list(members))
    values = {"loss": [1.0, 2.0], "tokens": [4.0, 5.0], "grad_norm": [0.5, 0.25], "lr": [0.1, 0.1]}
    arrays = {name: jnp.array(x) for name, x in values.items()}
    log.add(0, arrays, 8)
    log.collect(leave=0)
    writer.close()
    found = [read(folder / "metrics.jsonl") for folder in members.values()]
    assert [rows[0]["loss"] for rows in found] == [1.0, 2.0]
    assert [rows[0]["tokens"] for rows in found] == [4.0, 5.0]
    log.add(1, arrays | {"loss": jnp.array([1.0, jnp.nan])}, 8)
    with pytest.raises(ValueError, match=r"NaN at step 1 of run a\+1, b of the group"):
        log.collect(leave=0)


def test_a_board_of_one_run_at_a_time():
    config = get_config()
    config.train.log, config.train.group = "wandb", 2
    with pytest.raises(ValueError, match="train.log='wandb': .* set train.group=1"):
        stages.run(config, "nowhere", dry_run=False)


@pytest.mark.pipeline
def test_which_runs_train_together(finished, tasks_folder, tmp_path):
    workdir = without_models(finished, tmp_path / "run")
    (two, other) = arranged(workdir, tasks_folder, group=3)
    assert isinstance(two, RunGroup) and (len(two.models), len(other.models)) == (2, 2)
    assert two.title == "uniform+1"
    # Planned once: more runs, which would group otherwise, leave it as it is.
    (again, *_, last) = arranged(workdir, tasks_folder, group=3, seeds=2)
    assert [m.key for m in again.models] == [m.key for m in two.models] and len(last.models) == 2
    # Nothing of it has begun: another size is planned anew, and none at all trains alone.
    (four,) = arranged(workdir, tasks_folder, group=4)
    assert len(four.models) == 4
    alone = arranged(workdir, tasks_folder)
    assert all(isinstance(each, RunModel) for each in alone)
    # A group that has begun stays, and its keys differ from those of runs alone.
    (four.folder / "checkpoints" / "2").mkdir(parents=True)
    (kept,) = arranged(workdir, tasks_folder)
    assert (kept.folder, kept.key) == (four.folder, four.key)
    assert not {m.key for m in kept.models} & {m.key for m in alone}
    # A run that has begun alone ends alone; other shapes make other groups.
    shutil.rmtree(four.folder)
    alone[0].begin()
    (alone[0].folder / "checkpoints" / "2").mkdir(parents=True)
    (first, rest) = arranged(workdir, tasks_folder, group=4)
    assert first.key == alone[0].key and len(rest.models) == 3


@pytest.mark.pipeline
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_side_by_side_they_become_what_they_become_alone(
    mode, finished, together, tasks_folder, tmp_path
):
    """But for rounding: no weight differs by more than a thousandth of what training has moved."""
    options = [f"--config.tasks.source={tasks_folder}", f"--config.train.mode={mode}"]
    alone, (workdir, said) = finished, together
    if mode == "lora":
        options += ["--config.train.lora.dropout=0.1", "--config.train.accumulate=2"]
        alone = without_models(finished, tmp_path / "alone")
        launch(alone, *options, "--stage=runs")
        workdir = without_models(finished, tmp_path / "run")
        said = launch(workdir, *options, TOGETHER, "--stage=runs").stdout
    assert "uniform+3: 4 runs side by side" in said and "4 runs trained" in said
    base = load_file(finished / "base" / "model.safetensors")
    for name in [path.name for path in (alone / "runs").iterdir()]:
        one, other = (
            load_file(w / "runs" / name / "hf" / "model.safetensors") for w in (alone, workdir)
        )
        moved = max(np.abs(one[key] - base[key]).max() for key in base)
        apart = max(np.abs(one[key] - other[key]).max() for key in base)
        assert moved > 1e-4 and apart < 1e-3 * moved, (name, moved, apart)
        rows = [read(w / "runs" / name / "metrics.jsonl") for w in (alone, workdir)]
        assert [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == [2, 4, 6]
        losses = [[row["loss"] for row in each] for each in rows]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
        facts = [
            json.loads((w / "runs" / name / "done.json").read_text()) for w in (alone, workdir)
        ]
        for key in ("label", "seed", "steps", "examples", "tokens", "rows"):
            assert facts[0][key] == facts[1][key]
        assert len(facts[1]["together"]) == 4 and "together" not in facts[0]
    # What is done stays, whatever the config asks for next.
    again = launch(workdir, *options, "--stage=runs").stdout
    assert again.count("done already") >= 4 and "trained" not in again
    assert not list((workdir / "runs" / ".groups").glob("*/checkpoints"))


@pytest.mark.pipeline
def test_a_killed_group_ends_in_the_same_bits(finished, together, tasks_folder, tmp_path):
    """One group of all; a second group is one more unit, as a second run is."""
    options, (whole, _) = [f"--config.tasks.source={tasks_folder}", TOGETHER], together
    workdir = without_models(finished, tmp_path / "run")
    for pattern in ("[0-9]/_CHECKPOINT_METADATA", "6/_CHECKPOINT_METADATA"):
        kill_when(workdir, f"runs/.groups/*/checkpoints/{pattern}", signal.SIGKILL, options)
    listed = launch(workdir, *options, "--units").stdout
    assert re.search(r"^runs:uniform\+3 +to do$", listed, re.M)
    launch(workdir, *options, "--only=runs:uniform+3")
    expected = {k: v for k, v in weights(whole).items() if k.startswith("runs")}
    assert len(expected) == 4
    assert {k: v for k, v in weights(workdir).items() if k.startswith("runs")} == expected
    for name in ("uniform", "taskpgm-pmi"):
        logs = [read(w / "runs" / name / "metrics.jsonl") for w in (whole, workdir)]
        assert [[x["step"], x["loss"]] for x in logs[0]] == [
            [x["step"], x["loss"]] for x in logs[1]
        ]


def test_a_plan_finds_out_how_many_have_room(tasks_folder, tmp_path, capsys):
    config = get_config()
    config.tasks.source, config.mesh.data = str(tasks_folder), -1
    config.train.seeds = 3
    said = {}
    for group in (1, 4, 0):
        config.train.group = group
        stages.run(config, str(tmp_path / "run"), dry_run=True, device="h100x1")
        text = capsys.readouterr().out
        said[group] = next(line for line in text.splitlines() if line.startswith("runs"))
        tokens = [int(x.replace(",", "")) for x in re.findall(r"([\d,]+) tokens with", said[group])]
        units = [int(x) for x in re.findall(r"(\d+) x ", said[group])] or [1]
        assert sum(a * b for a, b in zip(units, tokens, strict=True)) == 12 * 6 * 4 * 48
    assert "12 x" in said[1] and "3 x 4 runs, 4 side by side" in said[4]
    assert "12 runs, 12 side by side" in said[0]
