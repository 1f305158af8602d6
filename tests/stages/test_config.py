"""A wrong config is one line that says what is meant; a workdir belongs to one config."""

import pytest
from ml_collections import ConfigDict

from taskpgm.stages import checked, default_config, misspelt
from taskpgm.stages import workdir as wd
from taskpgm.stages.flow import refuse_other_config


def test_a_misspelt_key_names_the_nearest():
    assert "did you mean 'mixture.ratio'" in misspelt(["--config.mixture.ration=2"])
    assert "did you mean 'train.steps'" in misspelt(["--config.trian.steps=2"])
    assert "did you mean 'mixture.budget'" in misspelt(["--config.train.budget=2"])


def test_a_recipe_with_an_unknown_or_a_missing_key_is_refused():
    unknown = default_config()
    with unknown.unlocked():
        unknown.mixture.ration = 2.0
    with pytest.raises(ValueError, match="mixture.ration.*did you mean 'mixture.ratio'"):
        checked(unknown)
    with pytest.raises(ValueError, match="is missing"):
        checked(ConfigDict())


def workdir_of(tmp_path, config, *made):
    wd.write_json(tmp_path / "config.json", config.to_dict())
    for name in made:
        (tmp_path / name).mkdir()
    return tmp_path


def test_a_workdir_of_another_config_is_refused_with_the_keys(tmp_path):
    config = default_config()
    folder = workdir_of(tmp_path, config, "base", "adapters", "affinity", "mixture", "runs")
    config.mixture.ratio = 4.0
    with pytest.raises(ValueError, match=r"mixture.ratio was 2.0 and is now 4.0.*remove .*mixture"):
        refuse_other_config(folder, config)


def test_a_damaged_config_is_not_removed(tmp_path):
    folder = workdir_of(tmp_path, default_config(), "base")
    for text in ("{", "[1]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(ValueError, match="config.json is damaged .*: put a copy of it back"):
            refuse_other_config(folder, default_config())


def test_keys_of_later_stages_may_change(tmp_path):
    config = default_config()
    folder = workdir_of(tmp_path, config, "base", "adapters", "affinity")
    config.mixture.ratio = 4.0
    config.train.optimizer.lr = 1.0
    refuse_other_config(folder, config)


def test_keys_that_change_no_artefact_may_change(tmp_path):
    config = default_config()
    folder = workdir_of(tmp_path, config, "base", "adapters", "affinity", "mixture", "runs")
    config.mesh.fsdp = 2
    config.train.checkpoint_every = 7
    config.compare = ("uniform",)
    refuse_other_config(folder, config)
