"""A wrong config ends in one line with a suggestion; a workdir belongs to one config."""

import pytest
from ml_collections import ConfigDict

from taskpgm import artefact
from taskpgm.artefact import write_json
from taskpgm.stages import STAGES, default_config, misspelt, validate
from taskpgm.stages.workdir import check_resumable, differing_keys, write_config


def test_a_misspelt_key_names_the_nearest():
    assert "did you mean 'mixture.ratio'" in misspelt(["--config.mixture.ration=2"])
    assert "did you mean 'train.steps'" in misspelt(["--config.trian.steps=2"])
    assert "did you mean 'mixture.budget'" in misspelt(["--config.train.budget=2"])


def test_a_recipe_with_an_unknown_or_a_missing_key_is_refused():
    unknown = default_config()
    with unknown.unlocked():
        unknown.mixture.ration = 2.0
    with pytest.raises(ValueError, match="mixture.ration.*did you mean 'mixture.ratio'"):
        validate(unknown)
    with pytest.raises(ValueError, match="is missing"):
        validate(ConfigDict())


def workdir_of(tmp_path, config, *made):
    told = {"artefacts": artefact.VERSION} | config.to_dict()
    write_json(tmp_path / "config.json", told)
    for name in made:
        (tmp_path / name).mkdir()
    return tmp_path


def test_a_workdir_of_another_config_is_refused_with_the_keys(tmp_path):
    config = default_config()
    folder = workdir_of(tmp_path, config, "base", "adapters", "affinity", "mixture", "runs")
    config.affinity.normalize = "sequence"
    with pytest.raises(
        ValueError, match=r"normalize was 'token' and is now 'sequence'.*remove .*affinity"
    ):
        check_resumable(folder, config, STAGES)


def test_a_damaged_config_is_not_removed(tmp_path):
    folder = workdir_of(tmp_path, default_config(), "base")
    for text in ("{", "[1]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json is damaged .*: put a copy of it back"):
            check_resumable(folder, default_config(), STAGES)


def test_keys_of_later_stages_may_change(tmp_path):
    config = default_config()
    folder = workdir_of(tmp_path, config, "base", "adapters", "affinity")
    config.mixture.ratio = "4.0"
    config.train.optimizer.lr = 1.0
    check_resumable(folder, config, STAGES)


def test_keys_that_change_no_artefact_may_change(tmp_path):
    config = default_config()
    folder = workdir_of(tmp_path, config, "base", "adapters", "affinity", "mixture", "runs")
    config.mesh.fsdp = 2
    config.train.checkpoint_every = 7
    config.compare = ("uniform",)
    config.mixture.ratio = "4.0"  # mixtures and runs are named by what differs
    config.train.optimizer.lr = 1.0
    config.sweep.budget = (10, 20)
    check_resumable(folder, config, STAGES)


def test_benchmarks_may_come_later_and_go_and_how_they_are_asked_is_kept(tmp_path):
    config = default_config()
    folder = workdir_of(tmp_path, config, "base", "evaluation")
    config.evaluation.harness = ("mmlu",)
    config.evaluation.harness_limit = 100
    check_resumable(folder, config, STAGES)
    write_config(folder, config)
    (folder / "evaluation" / "harness").mkdir()
    check_resumable(folder, default_config(), STAGES)
    write_config(folder, default_config())  # names none, and forgets nothing
    check_resumable(folder, config, STAGES)
    config.evaluation.harness_limit = 0
    with pytest.raises(ValueError, match="harness_limit was 100 and is now 0.*evaluation/harness "):
        check_resumable(folder, config, STAGES)


def test_a_workdir_of_another_version_is_refused(tmp_path):
    config = default_config()
    for version in ({}, {"artefacts": artefact.VERSION - 1}):
        write_json(tmp_path / "config.json", version | config.to_dict())
        check_resumable(tmp_path, config, STAGES)  # nothing is made yet
        (tmp_path / "base").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="made by another version of taskpgm"):
            check_resumable(tmp_path, config, STAGES)
        (tmp_path / "base").rmdir()


def test_differing_keys_are_leaves():
    old = {"a": {"b": 1, "c": (1, 2)}, "d": 3}
    assert differing_keys(old, {"a": {"b": 2, "c": [1, 2]}, "d": 3}) == [("a.b", 1, 2)]
