"""A user's mistake ends in one line that names it, before anything is written."""

import errno
import json

import numpy as np
import pytest

import launch as launcher
from taskpgm import stages
from tests.stages.launching import launch, write_tasks
from tests.stages.tiny_config import get_config

pytestmark = pytest.mark.usefixtures("one_tokenizer")


def refused(tmp_path, change, error=(ValueError, OSError)) -> str:
    """Runs with a changed config; returns the one line. No artefact but tasks.json is made."""
    config = get_config()
    config.tasks.source = str(tmp_path / "data")
    config.mesh.data = -1
    change(config)
    workdir = tmp_path / "run"
    with pytest.raises(error) as caught:
        stages.run(config, str(workdir))
    made = {p.name for p in workdir.iterdir()} if workdir.exists() else set()
    assert made <= {"config.json", "settings.json", "tasks.json", ".cache"}
    line = launcher.one_line(caught.value)
    assert "\n" not in line
    return line


@pytest.fixture
def data(tmp_path):
    return write_tasks(tmp_path / "data")


def nothing(config):
    pass


def test_a_kernel_that_cannot_run_here(tmp_path, data):
    def change(config):
        config.affinity.kernel = "pallas"

    assert "affinity.kernel='pallas' runs on one TPU device only" in refused(tmp_path, change)


def append(path, text):
    path.write_text(path.read_text() + text)


def test_no_such_path(tmp_path):
    assert str(tmp_path / "data") in refused(tmp_path, nothing)


def test_a_malformed_line_is_named(tmp_path, data):
    append(data / "upper.jsonl", '{"prompt": "a", \n')
    assert "upper.jsonl:13" in refused(tmp_path, nothing)


def test_not_utf8(tmp_path, data):
    with (data / "upper.jsonl").open("ab") as file:
        file.write(b'{"prompt": "\xff", "response": "b"}\n')
    assert "upper.jsonl" in refused(tmp_path, nothing)


def test_a_row_with_no_response(tmp_path, data):
    append(data / "upper.jsonl", '{"prompt": "a", "response": ""}\n')
    assert "upper.jsonl:13" in refused(tmp_path, nothing)


def test_an_empty_file(tmp_path, data):
    (data / "none.jsonl").write_text("")
    assert "none.jsonl" in refused(tmp_path, nothing)


def test_duplicate_names(tmp_path, data):
    (data / "more").mkdir()
    (data / "more" / "upper.jsonl").write_text((data / "upper.jsonl").read_text())
    assert "duplicate task name 'upper'" in refused(tmp_path, nothing)


def test_one_task_only(tmp_path, data):
    for path in data.glob("*.jsonl"):
        if path.name != "upper.jsonl":
            path.unlink()
    assert "only one task" in refused(tmp_path, nothing)


def test_a_heldout_split_of_size_zero(tmp_path, data):
    (data / "upper.heldout.jsonl").write_text("")
    assert "upper.heldout.jsonl" in refused(tmp_path, nothing)
    line = refused(tmp_path, lambda c: c.tasks.update(heldout_fraction=0.0))
    assert "heldout_fraction" in line


def test_a_budget_larger_than_the_data_allow(tmp_path, data):
    line = refused(tmp_path, lambda c: c.mixture.update(budget=1000))
    assert "mixture.budget=1000" in line and "lower the budget" in line


def test_unknown_mixtures_and_methods(tmp_path, data):
    line = refused(tmp_path, lambda c: c.update(compare=("unifrom",)))
    assert "did you mean 'uniform'" in line
    line = refused(tmp_path, lambda c: c.mixture.update(method="exakt"))
    assert "did you mean 'exact'" in line


def test_no_such_stage(tmp_path, data):
    config = get_config()
    with pytest.raises(ValueError, match="did you mean 'adapters'"):
        stages.run(config, str(tmp_path / "run"), last="adapter")


LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
}


def model_folder(tmp_path, **changes):
    """A saved random model, its config.json changed afterwards."""
    import jax

    from taskpgm import models

    folder = tmp_path / "model"
    config = models.DecoderConfig.from_hf(LLAMA)
    models.save_hf(folder, config, models.init_params(config, jax.random.key(0)))
    written = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(written))
    return folder


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "falcon"}, "'falcon' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"num_hidden_layers": 2}, "is missing"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
    ],
)
def test_models_that_are_not_what_they_say(tmp_path, data, changes, named):
    folder = model_folder(tmp_path, **changes)
    assert named in refused(tmp_path, lambda c: c.base.update(path=str(folder)))


def test_an_extra_tensor(tmp_path, data):
    from safetensors.numpy import load_file, save_file

    path = model_folder(tmp_path) / "model.safetensors"
    save_file(load_file(path) | {"model.extra": np.zeros(2, np.float32)}, path)
    line = refused(tmp_path, lambda c: c.base.update(path=str(path.parent)))
    assert "tensor model.extra is not part" in line


def test_a_model_folder_without_weights(tmp_path, data):
    folder = model_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    assert "no weights (model.safetensors" in refused(
        tmp_path, lambda c: c.base.update(path=str(folder))
    )
    line = refused(tmp_path, lambda c: c.proxy.update(path=str(tmp_path / "nowhere")))
    assert "no such model folder" in line


@pytest.mark.parametrize("damage", ["header", "cut off", "shard"])
def test_a_dry_run_refuses_a_model_that_cannot_be_loaded(tmp_path, data, damage):
    path = model_folder(tmp_path) / "model.safetensors"
    if damage == "header":
        path.write_bytes((2).to_bytes(8, "little") + b"[]")
    elif damage == "cut off":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.rename(path.with_name("model-1.safetensors"))
        index = {"weight_map": {"model.norm.weight": "model-2.safetensors"}}
        path.with_name("model.safetensors.index.json").write_text(json.dumps(index))
    config = get_config()
    config.tasks.source, config.base.path = str(data), str(path.parent)
    with pytest.raises((ValueError, OSError), match=r"model(-2)?\.safetensors: ") as caught:
        stages.run(config, str(tmp_path / "run"), dry_run=True)
    assert "\n" not in launcher.one_line(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_workdir_that_cannot_be_written(tmp_path, data, where):
    (tmp_path / "file").write_text("not a folder")
    config = get_config()
    config.tasks.source = str(data)
    with pytest.raises(OSError, match=f"--workdir={tmp_path}/{where}: nothing can be written") as e:
        stages.run(config, str(tmp_path / where))
    assert ".tmp" not in launcher.one_line(e.value)


def test_a_matrix_that_is_cut_off(tmp_path):
    path = tmp_path / "S.npz"
    np.savez(path, affinity=np.eye(3))
    path.write_bytes(path.read_bytes()[:100])

    def change(config):
        config.affinity.matrix, config.tasks.source = str(path), "stdlib"

    line = refused(tmp_path, change)
    assert f"{path}: not a readable .npz matrix" in line


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"0": "many"}', '{"0": -1}', '{"0": 1e999}', '{"0": 1e30}']
)
def test_sizes_that_are_not(tmp_path, text):
    path, sizes = tmp_path / "S.npz", tmp_path / "sizes.json"
    np.savez(path, affinity=np.eye(2), tasks=["0", "1"])
    sizes.write_text(text)
    config = get_config()
    config.affinity.matrix, config.affinity.sizes = str(path), str(sizes)
    with pytest.raises(ValueError, match=f"{sizes}: not a JSON object of tasks"):
        stages.run(config, str(tmp_path / "run"))


def test_damage_in_a_matrix_run_leads_out(tmp_path):
    path, workdir = tmp_path / "S.npz", tmp_path / "run"
    np.savez(path, affinity=np.eye(2), tasks=["0", "1"])
    config = get_config()
    config.affinity.matrix, config.compare = str(path), ("taskpgm-pmi", "uniform")
    stages.run(config, str(workdir), last="mixture")
    for damaged, mark in (
        ("affinity/pmi.npz", "affinity/done.json"),
        ("mixture/weights.json", "mixture/done.json"),
    ):
        whole = (workdir / damaged).read_bytes()
        (workdir / damaged).write_bytes(whole[:40])
        with pytest.raises(ValueError, match=f"{workdir / damaged}.*: remove .*done.json"):
            stages.run(config, str(workdir))
        (workdir / mark).unlink()
        stages.run(config, str(workdir), last="mixture")
        assert (workdir / damaged).read_bytes() == whole


def test_a_full_disk_is_called_one():
    error = OSError(errno.ENOSPC, "No space left on device", "runs/x/weights.json")
    line = launcher.one_line(error)
    assert line.startswith("the disk is full at runs/x/weights.json")


@pytest.mark.pipeline
def test_nan_loss_ends_with_one_line_and_no_traceback(tasks_folder, tmp_path):
    done = launch(
        tmp_path / "run",
        f"--config.tasks.source={tasks_folder}",
        "--config.embedded.optimizer.lr=10.0",
        "--config.embedded.optimizer.weight_decay=1000.0",  # weights grow 10,000 times a step
        "--config.embedded.steps=40",
        code=1,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "loss is" in lines[0] and "run base" in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.pipeline
def test_flags_that_are_wrong(tmp_path):
    for options, said in (
        (["--config.mixture.ration=2"], "did you mean 'mixture.ratio'"),
        (["--config.mixture.ratio=high"], "has to be a number >= 0"),
    ):
        done = launch(tmp_path / "run", *options, code=1)
        assert said in done.stderr and "Traceback" not in done.stderr
    done = launch(tmp_path / "run", config="configs/nowhere.py", code=1)
    assert "configs/nowhere.py: no such file" in done.stderr
    assert not (tmp_path / "run").exists()
