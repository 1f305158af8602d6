"""Single-task adapters out as PEFT folders, and in from them, through the launcher's flow."""

import json
import shutil

import numpy as np
import pytest

import launch as launcher
from taskpgm import models, stages
from tests.stages.launching import ANSWERS, launch
from tests.stages.tiny_config import get_config

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def world(finished, tasks_folder, tmp_path_factory):
    """A base, tasks, and a finished stage `affinity`, whose adapters are then PEFT folders too."""
    folder = tmp_path_factory.mktemp("world")
    later = shutil.ignore_patterns("mixture", "runs", "evaluation", "report")
    shutil.copytree(finished, folder / "first", ignore=later)
    (folder / "base").symlink_to(folder / "first" / "base")
    (folder / "data").symlink_to(tasks_folder)
    data = f"--config.tasks.source={tasks_folder}"
    said = launch(folder / "first", data, "--config.adapters.peft=True", "--stage=affinity").stdout
    assert "adapters  done already" in said and "PEFT: 4 written" in said
    for name in ANSWERS:
        shutil.copytree(folder / "first" / "adapters" / name / "peft", folder / "peft" / name)
    return folder


def run(world, workdir, *options) -> str:
    """What launch.py says of a run to the stage `affinity`."""
    paths = f"--config.tasks.source={world / 'data'}", f"--config.base.path={world / 'base'}"
    return launch(world / workdir, *paths, *options, "--stage=affinity").stdout


def pmi(world, workdir):
    return np.load(world / workdir / "affinity" / "pmi.npz")["affinity"]


def test_adapters_that_come_back_are_the_same(world):
    imported = f"--config.adapters.source={world / 'peft'}"
    assert f"taken over from {world / 'peft'}" in run(world, "second", imported)
    np.testing.assert_array_equal(pmi(world, "second"), pmi(world, "first"))
    # Done, and so kept; PEFT folders can be asked for at any time.
    said = run(world, "second", imported, "--config.adapters.peft=True")
    assert "adapters  done already" in said and "PEFT: 4 written" in said
    again = world / "second" / "adapters" / "upper" / "peft" / "adapter_model.safetensors"
    assert again.read_bytes() == (world / "peft/upper/adapter_model.safetensors").read_bytes()


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft's
def test_peft_loads_them(world):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    peft = pytest.importorskip("peft", reason="peft is not installed")
    from transformers import AutoModelForCausalLM

    ids = np.arange(2, 14)[None]
    base = AutoModelForCausalLM.from_pretrained(world / "base")
    plain = base(torch.tensor(ids)).logits.detach().numpy()
    folder = world / "first" / "adapters" / "upper" / "peft"
    theirs = peft.PeftModel.from_pretrained(base, str(folder)).eval()
    wanted = theirs(torch.tensor(ids)).logits.detach().numpy()
    assert json.loads((folder / "adapter_config.json").read_text())[
        "base_model_name_or_path"
    ] == str(world / "first" / "base")
    config, params = models.load_hf(world / "base")
    settings, lora = models.load_peft(folder, config)
    config = models.DecoderConfig(**vars(config) | {"lora": settings})
    ours = models.Decoder(config).apply({"params": params, "lora": lora}, ids)
    np.testing.assert_allclose(ours, wanted, atol=1e-4, rtol=1e-4)
    assert np.abs(wanted - plain).max() > 1e-6  # it was trained


def refused(world, source, **adapters) -> str:
    config = get_config()
    config.tasks.source, config.base.path = str(world / "data"), str(world / "base")
    config.adapters.update({"source": str(source), **adapters})
    with pytest.raises((ValueError, OSError)) as caught:
        stages.run(config, str(world / "none"), dry_run=True)
    assert not (world / "none").exists()
    line = launcher.one_line(caught.value)
    assert "\n" not in line
    return line


def test_whole_models_are_not_taken_over(world, tmp_path):
    config = get_config()
    config.tasks.source, config.base.path = str(world / "data"), str(world / "base")
    config.adapters.update({"source": str(world / "peft"), "mode": "full"})
    with pytest.raises(ValueError, match="set adapters.mode=lora"):
        stages.run(config, str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_what_cannot_be_taken_over_is_found_first(world, tmp_path):
    peft = shutil.copytree(world / "peft", tmp_path / "peft")
    assert "rank 2 is above 1" in refused(world, peft, lora={"rank": 1})
    assert "k_proj, which is not in" in refused(world, peft, lora={"targets": ("q_proj",)})
    # Every task's adapter is read, the first and the last.
    for name in ("upper", "length"):
        path = peft / name / "adapter_config.json"
        raw = json.loads(path.read_text())
        path.write_text(json.dumps(raw | {"use_dora": True}))
        assert f"{name}/adapter_config.json: use_dora = true is not" in refused(world, peft)
        path.write_text(json.dumps(raw | {"r": 3}))
        assert "lora_A.weight is F32 [2, 16], which does not fit [3, 16]" in refused(world, peft)
        path.write_text(json.dumps(raw))
    path.unlink()
    assert f"no {path}; every task needs a PEFT folder" in refused(world, peft)
    assert f"no {tmp_path / 'nowhere'}" in refused(world, tmp_path / "nowhere")
