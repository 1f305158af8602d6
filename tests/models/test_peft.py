"""PEFT folders that cannot be imported are refused in one line."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from taskpgm.models import Decoder, LoraConfig, fit_lora, load_peft, save_peft

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def saved(tiny, with_lora, tmp_path):
    config, lora = with_lora(tiny("gpt2"), rank=2, targets=("q_proj", "v_proj", "o_proj"))
    save_peft(tmp_path, config, lora, "base")
    return config, lora, tmp_path


def test_round_trip(saved):
    config, lora, folder = saved
    settings, back = load_peft(folder, config)
    assert settings == config.lora
    back, lora = back["layers"]["attention"], lora["layers"]["attention"]
    for name, wanted in lora.items():
        jax.tree.map(np.testing.assert_array_equal, back[name], wanted)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "use_dora = true is not supported; only false is"),
        ({"bias": "all"}, 'bias = "all" is not supported'),
        ({"modules_to_save": ["lm_head"]}, 'modules_to_save = ."lm_head". is not supported'),
        ({"peft_type": "IA3"}, 'peft_type = "IA3" is not supported'),
        ({"layers_to_transform": [0]}, "layers_to_transform = .0. is not supported"),
        ({"r": 0}, f"{CONFIG}: r must be a whole number above 0, not 0"),
        ({"r": "8"}, f"{CONFIG}: r must be a whole number above 0, not '8'"),
        ({"lora_alpha": None}, f"{CONFIG}: lora_alpha must be a number above 0, not None"),
        ({"lora_dropout": 1}, f"{CONFIG}: lora_dropout must be a number from 0 to below 1, not 1"),
        ({"alpha_pattern": {"c_proj": "x"}}, f"{CONFIG}: alpha_pattern must be an object of num"),
    ],
)
def test_other_kinds_of_adapters(saved, change, said):
    config, _, folder = saved
    raw = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(raw | change))
    with pytest.raises(ValueError, match=said):
        load_peft(folder, config)


def test_missing_and_foreign_tensors(saved):
    config, _, folder = saved
    tensors = load_file(folder / WEIGHTS)
    name = "base_model.model.transformer.h.1.attn.c_proj.lora_B.weight"
    without = {key: x for key, x in tensors.items() if key != name}
    save_file(without, folder / WEIGHTS)
    with pytest.raises(ValueError, match=f"tensor {name} is missing"):
        load_peft(folder, config)
    save_file(tensors | {name: tensors[name][:-1]}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=rf"tensor {name} is F32 \[31, 2\], which does not fit"):
        load_peft(folder, config)
    save_file(
        tensors | {"base_model.model.lm_head.lora_A.weight": without.popitem()[1]}, folder / WEIGHTS
    )
    with pytest.raises(ValueError, match="tensor base_model.model.lm_head.lora_A.weight cannot"):
        load_peft(folder, config)


def test_folders_without_files(saved):
    config, _, folder = saved
    (folder / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"no {WEIGHTS}"):
        load_peft(folder, config)
    (folder / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=f"{CONFIG}: no such file"):
        load_peft(folder, config)


def test_an_adapter_in_the_shape_of_another_config(tiny, randomized, with_lora):
    """A smaller rank, another scale, fewer matrices: the same logits."""
    own, lora = with_lora(tiny(), rank=2, alpha=3.0, targets=("q_proj", "down_proj"))
    wider = LoraConfig(rank=5, alpha=20.0, targets=("q_proj", "v_proj", "down_proj"))
    config = dataclasses.replace(own, lora=wider)
    fitted = fit_lora(config, own.lora, lora)
    params, tokens = randomized(config), jnp.arange(12)[None]

    @partial(jax.jit, static_argnums=0)
    def run(config, lora):
        return Decoder(config).apply({"params": params, "lora": lora}, tokens)

    got, wanted = run(config, fitted), run(own, lora)
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="its rank 5 is above 2"):
        fit_lora(own, wider, fitted)
    with pytest.raises(ValueError, match="it adapts v_proj, which is not in the lora.targets"):
        fit_lora(own, dataclasses.replace(wider, rank=2), fitted)
