"""Every key that transformers and peft read is read here too, refused, or without effect."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from taskpgm.models import DecoderConfig, hf_keys, load_peft, save_peft
from taskpgm.models.hf_config import FAMILIES

CONFIG = "adapter_config.json"
# Mistral models with layer_types are read by the classes of Ministral.
MODULES = (*FAMILIES, "ministral")


def source(module: str) -> str:
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / module).read_text(encoding="utf-8")


def keys_read(text: str) -> set[str]:
    direct = re.findall(r"\bconfig\.([a-z_]+)(?![a-z_(])", text)
    return {*direct, *re.findall(r"getattr\([a-z_.]*config, *\"([a-z_]+)\"", text)}


@pytest.mark.parametrize("kind", MODULES)
def test_keys_that_transformers_models_read(kind):
    text = source(f"models/{kind}/modeling_{kind}.py")
    assert "num_hidden_layers" in keys_read(text)  # the pattern finds keys at all
    known = {*hf_keys.MODEL, *hf_keys.MODEL_FIXED, *hf_keys.MODEL_WITHOUT_EFFECT}
    assert keys_read(text) <= known


def test_keys_that_transformers_masks_and_rotations_read():
    known = {*hf_keys.MODEL, *hf_keys.MODEL_FIXED, *hf_keys.MODEL_WITHOUT_EFFECT}
    masks = set(re.findall(r"getattr\([a-z_.]*config, *\"([a-z_]+)\"", source("masking_utils.py")))
    assert "is_causal" in masks and masks <= known
    rotary = source("modeling_rope_utils.py")
    assert set(re.findall(r"getattr\(config, *\"([a-z_]+)\"", rotary)) <= known


@pytest.mark.torch  # which peft imports
def test_keys_of_peft():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    known = {"init_lora_weights", *hf_keys.ADAPTER, *hf_keys.ADAPTER_FIXED}
    assert set(peft.LoraConfig.__dataclass_fields__) <= known | hf_keys.ADAPTER_WITHOUT_EFFECT


@pytest.mark.parametrize("key", hf_keys.MODEL_FIXED)
def test_fixed_keys_of_a_model(tiny, key):
    raw = tiny("gpt2").to_hf()
    DecoderConfig.from_hf(raw | {key: hf_keys.MODEL_FIXED[key]})
    other = {"0": [1]} if hf_keys.MODEL_FIXED[key] is None else not hf_keys.MODEL_FIXED[key]
    with pytest.raises(ValueError, match=f"^config: {key} = .* is not supported; only"):
        DecoderConfig.from_hf(raw | {key: other})


def test_a_fixed_key_that_is_on_cannot_be_null(tiny):
    with pytest.raises(ValueError, match="is_causal = null is not supported; only true is"):
        DecoderConfig.from_hf(tiny().to_hf() | {"is_causal": None})


@pytest.mark.parametrize("name", ["AutoConfig", "AutoModel", "AutoModelForCausalLM"])
def test_code_of_a_model_folder_is_named(tiny, name):
    raw = tiny().to_hf()
    DecoderConfig.from_hf(raw | {"auto_map": {"AutoTokenizer": "tokenization.Mine"}})
    with pytest.raises(ValueError, match=f"auto_map has {name} = 'modeling.Mine', code of"):
        DecoderConfig.from_hf(raw | {"auto_map": {name: "modeling.Mine"}})


@pytest.fixture
def adapter(tiny, with_lora, tmp_path):
    """change(**keys) -> the config of the model and the folder of an adapter with these keys."""
    config, lora = with_lora(tiny(), rank=2)
    save_peft(tmp_path, config, lora, "base")
    raw = json.loads((tmp_path / CONFIG).read_text())

    def change(**keys):
        (tmp_path / CONFIG).write_text(json.dumps(raw | keys))
        return tmp_path, config

    return change


@pytest.mark.parametrize("key", sorted(set(hf_keys.ADAPTER_FIXED) - {"peft_type", "bias"}))
def test_fixed_keys_of_an_adapter(adapter, key):
    load_peft(*adapter(**{key: hf_keys.ADAPTER_FIXED[key]}))
    with pytest.raises(ValueError, match=f"{CONFIG}: {key} = .* is not supported; only"):
        load_peft(*adapter(**{key: {"rank": 1}}))


@pytest.mark.parametrize("init", [True, False, "gaussian", "orthogonal", "eva"])
def test_ways_to_initialise_that_leave_the_base_alone(adapter, init):
    load_peft(*adapter(init_lora_weights=init))


@pytest.mark.parametrize(
    "init",
    [
        "pissa",
        "pissa_niter_16",
        "PiSSA",
        "olora",
        "corda",
        "loftq",
        "lora_ga",
        "mica",
        "new",
        None,
    ],
)
def test_ways_to_initialise_that_may_change_the_base(adapter, init):
    with pytest.raises(ValueError, match=f"{CONFIG}: init_lora_weights = .* is not supported"):
        load_peft(*adapter(init_lora_weights=init))


def test_unknown_keys_of_an_adapter(adapter):
    load_peft(*adapter(enable_lora=None, merge_weights=False, some_list=[], some_config={}))
    with pytest.raises(ValueError, match=f"{CONFIG}: use_norm = true is not a known key of LoRA"):
        load_peft(*adapter(use_norm=True))
