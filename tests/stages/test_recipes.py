"""Every recipe of configs/ runs, on stand-ins small enough for a test."""

import json

import numpy as np
import pytest

from configs import llama2_mix, mistral_mix, qwen2_mix
from taskpgm.stages import validate
from taskpgm.tasks import load_tokenizer
from tests.stages.launching import ROOT, launch
from tests.stages.stand_in import stand_in

pytestmark = pytest.mark.pipeline

# What makes a recipe small: the model is a stand-in, and sizes follow it. The rest is the recipe's.
SMALL = (
    "--config.tasks.length=64",
    "--config.adapters.max_steps=2",
    "--config.mixture.budget=30",
    "--config.train.batch_size=4",
    "--config.evaluation.max_new_tokens=2",
    "--config.evaluation.exact_match_examples=1",
    "--config.evaluation.harness=()",
    "--config.affinity.bootstrap=4",
)
TWO = "--config.compare=('uniform','taskpgm-jsd')"


def write_matrix(path, names, matrix):
    lines = [",".join(names)] + [",".join(map(str, row)) for row in matrix]
    path.write_text("\n".join(lines))


def test_the_llama2_recipe(tasks_folder, tmp_path):
    model = stand_in(tmp_path / "model", "llama")
    launch(
        tmp_path / "run",
        f"--config.base.path={model}",
        f"--config.tasks.source={tasks_folder}",
        *SMALL,
        TWO,
        "--stage=evaluation",
        config="configs/llama2_mix.py",
    )
    weights = json.loads((tmp_path / "run" / "mixture" / "weights.json").read_text())
    assert sum(weights["counts"]) == 30
    results = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())
    assert set(results["runs"]) == {"uniform", "taskpgm-jsd"}
    trained = results["runs"]["uniform"]["tasks"]["upper"]["loss"]
    assert trained != results["base"]["tasks"]["upper"]["loss"]


def test_another_model_by_the_same_recipe(tasks_folder, tmp_path):
    """With affinities that are given: those of its own models are tested above."""
    model = stand_in(tmp_path / "model", "mistral")
    generation = {"eos_token_id": 7, "temperature": 0.6}
    (model / "generation_config.json").write_text(json.dumps(generation))
    write_matrix(tmp_path / "S.csv", ["upper", "shout", "reverse", "length"], np.eye(4))
    launch(
        tmp_path / "run",
        f"--config.base.path={model}",
        f"--config.tasks.source={tasks_folder}",
        f"--config.affinity.matrix={tmp_path / 'S.csv'}",
        "--config.affinity.kind=jsd",
        *SMALL,
        "--config.compare=('taskpgm-jsd',)",
        "--stage=runs",
        config="configs/mistral_mix.py",
    )
    trained = tmp_path / "run" / "runs" / "taskpgm-jsd" / "hf"
    assert json.loads((trained / "config.json").read_text())["model_type"] == "mistral"
    # It ends where its base did, and where it was trained to.
    ends = [7, load_tokenizer(trained).eos_token_id]
    told = json.loads((trained / "generation_config.json").read_text())
    assert (told["eos_token_id"], told["temperature"]) == (ends, 0.6)


@pytest.mark.parametrize("recipe", [mistral_mix, qwen2_mix], ids=["mistral", "qwen2"])
def test_recipes_that_differ_by_their_model_alone(recipe):
    """So what is tested of the others is tested of them."""
    config = recipe.get_config()
    assert config.base.path != llama2_mix.get_config().base.path
    config.base.path = llama2_mix.get_config().base.path
    assert config == llama2_mix.get_config()


def test_the_proxy_differs_from_the_model_that_the_mixture_trains(tasks_folder, tmp_path):
    proxy, base = stand_in(tmp_path / "gpt2", "gpt2"), stand_in(tmp_path / "qwen2", "qwen2")
    launch(
        tmp_path / "run",
        f"--config.base.path={base}",
        f"--config.proxy.path={proxy}",
        f"--config.tasks.source={tasks_folder}",
        *SMALL,
        "--config.compare=('taskpgm-pmi',)",
        "--stage=runs",
        config="configs/gpt2_proxy.py",
    )
    trained = tmp_path / "run" / "runs" / "taskpgm-pmi" / "hf"
    assert json.loads((trained / "config.json").read_text())["model_type"] == "qwen2"


def test_weights_from_a_matrix_alone(tmp_path):
    noise = np.random.default_rng(0).normal(size=(6, 6))
    names = [f"t{i}" for i in range(6)]
    write_matrix(tmp_path / "S.csv", names, noise + noise.T)
    launch(
        tmp_path / "run",
        f"--config.affinity.matrix={tmp_path / 'S.csv'}",
        config="configs/mix_from_affinity.py",
    )
    weights = json.loads((tmp_path / "run" / "mixture" / "weights.json").read_text())
    assert weights["tasks"] == names
    assert abs(sum(weights["weights"]) - 1) < 1e-12
    assert weights["gap"] <= 1e-9 * max(1, abs(weights["energy"]))


def test_a_dry_run_prints_the_plan_and_makes_nothing(tasks_folder, tmp_path):
    said = launch(tmp_path / "run", "--dry_run", f"--config.tasks.source={tasks_folder}").stdout
    for stage in ("tasks", "base", "adapters", "affinity", "mixture", "runs", "evaluation"):
        assert any(line.startswith(stage) and "to do" in line for line in said.splitlines()), said
    assert "FLOPs" in said and "memory/device" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_recipe_has_the_schema_and_opens_with_its_command(path):
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    validate(module.get_config())
    assert f"python launch.py --config=configs/{path.name}" in module.__doc__
