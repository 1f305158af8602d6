"""Whatever bytes files of a model or an adapter are: what they say, or one line naming the file."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from taskpgm.models import check_hf, hf_keys, load_peft, save_hf, save_peft
from taskpgm.models.safetensors_file import read_header, read_tensor

quietly = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 4, 32, 2**31, 10**30, -1])
    | st.floats()
    | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


def one_line(error: Exception, *named: str) -> None:
    message = str(error)
    assert message and "\n" not in message and len(message) < 2000
    assert all(name in message for name in named), message


# --- safetensors ----------------------------------------------------------------------------------
items = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F8_E4M3", "X"]) | values,
        "shape": st.lists(st.integers(0, 4) | st.sampled_from([2**40, -1]), max_size=3) | values,
        "data_offsets": st.lists(st.integers(0, 64) | st.just(2**63), max_size=3) | values,
    }
)
headers = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__", ""]), items | values, max_size=3
)


@quietly
@given(header=headers, data=st.binary(max_size=64), length=st.none() | st.integers(0, 2**64 - 1))
@example(
    header={"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, data=b"1" * 8, length=None
)
@example(header={}, data=b"", length=2**63)
@example(header={}, data=b"", length=None)
def test_any_header_of_safetensors_is_read_or_refused(tmp_path, header, data, length):
    path, text = tmp_path / "model.safetensors", json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    try:
        entries = read_header(path)
    except ValueError as error:
        one_line(error, str(path))
        return
    assert entries.keys() == header.keys() - {"__metadata__"}
    for name, entry in entries.items():
        assert entry.start >= 8 + len(text) and entry.start + entry.size <= path.stat().st_size
        if entry.dtype in ("F32", "F16", "BF16"):
            assert list(read_tensor(entry).shape) == header[name]["shape"]


@quietly
@given(content=st.binary(max_size=100))
def test_any_bytes_of_safetensors_are_read_or_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    try:
        read_header(path)
    except ValueError as error:
        one_line(error, str(path))


# --- config.json, generation_config.json ----------------------------------------------------------
@pytest.fixture(scope="module")
def folders(tiny, randomized, tmp_path_factory):
    """A saved model of each architecture."""
    made = {}
    for kind in ("llama", "mistral", "qwen2", "gpt2"):
        config, made[kind] = tiny(kind), tmp_path_factory.mktemp("fuzz") / kind
        save_hf(made[kind], config, randomized(config))
    return made


keys = st.sampled_from([*hf_keys.MODEL, *hf_keys.MODEL_FIXED, "model_type"])
ropes = st.fixed_dictionaries(
    {}, optional={key: values for key in (*hf_keys.ROPE, "rope_type", "type", "rope_theta")}
)
changes = st.dictionaries(keys, values | ropes, min_size=1, max_size=3)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gpt2"])
@quietly
@given(change=changes)
@example(change={"num_hidden_layers": 10**9, "n_layer": 10**9})
@example(change={"hidden_size": 10**30, "n_embd": 10**30})
@example(change={"hidden_size": 2**31 - 1, "n_embd": 2**31 - 1, "vocab_size": 2**31 - 1})
@example(change={"num_attention_heads": 64, "n_head": 64, "head_dim": None})
@example(change={"num_attention_heads": 3, "n_head": 3})
@example(change={"rope_scaling": {"rope_type": "llama3", "factor": 8.0}})
@example(change={"rope_scaling": {"rope_type": ["linear"]}})
@example(change={"layer_types": ["full_attention"] * 7})
def test_any_config_is_read_or_refused(folders, tmp_path, kind, change):
    folder = tmp_path / kind
    shutil.copytree(folders[kind], folder, dirs_exist_ok=True)
    raw = json.loads((folders[kind] / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **change}))
    try:
        found = check_hf(folder)
    except ValueError as error:
        one_line(error, str(folder))
        return
    assert found.hidden_size == 32 and found.num_layers == 2  # what the tensors are


@quietly
@given(
    content=st.binary(max_size=60) | values.map(lambda x: json.dumps(x).encode()),
    name=st.sampled_from(["config.json", "generation_config.json", "model.safetensors.index.json"]),
)
@example(content=b"[" * 100_000, name="config.json")
@example(content=b'{"a": ' * 50_000, name="generation_config.json")
@example(content=b'{"weight_map": {"a": "../x"}}', name="model.safetensors.index.json")
@example(content=b'{"weight_map": {"a": "\\u0000"}}', name="model.safetensors.index.json")
@example(content=b'{"eos_token_id": [1, "2"]}', name="generation_config.json")
@example(content=b'{"eos_token_id": ' + b"9" * 5000 + b"}", name="generation_config.json")
def test_any_bytes_of_a_models_json_are_read_or_refused(folders, tmp_path, content, name):
    folder = tmp_path / "llama"
    shutil.copytree(folders["llama"], folder, dirs_exist_ok=True)
    if "index" in name:
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    try:
        check_hf(folder)
    except (ValueError, FileNotFoundError) as error:
        one_line(error, str(folder))


# --- adapter_config.json --------------------------------------------------------------------------
@pytest.fixture(scope="module")
def adapters(tiny, with_lora, tmp_path_factory):
    """Adapters of a Llama and of a GPT-2, saved."""
    made = {}
    for kind in ("llama", "gpt2"):
        config, lora = with_lora(tiny(kind), rank=2, targets=("q_proj", "v_proj", "o_proj"))
        made[kind] = tmp_path_factory.mktemp("fuzz_peft") / kind, config
        save_peft(made[kind][0], config, lora, "base")
    return made


known = st.sampled_from(
    [*hf_keys.ADAPTER, *hf_keys.ADAPTER_FIXED, *hf_keys.ADAPTER_WITHOUT_EFFECT, "init_lora_weights"]
)
patterns = st.dictionaries(
    st.sampled_from(["q_proj", "c_attn", ".*", "(", "a" * 300, r"(\w+)*$"]), values
)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@quietly
@given(change=st.dictionaries(known | st.text(max_size=8), values | patterns, max_size=3))
@example(change={"r": 10**9})
@example(change={"r": 3})
@example(change={"alpha_pattern": {"(": 1}})
@example(change={"alpha_pattern": {r"(\w+\.?)+!": 1}})
@example(change={"rank_pattern": {"q_proj": 10**9}})
@example(change={"use_rslora": True})
@example(change={"init_lora_weights": {"pissa": 1}})
def test_any_adapter_config_is_read_or_refused(adapters, tmp_path, kind, change):
    saved, config = adapters[kind]
    folder = tmp_path / kind
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    raw = json.loads((saved / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**raw, **change}))
    try:
        found, _ = load_peft(folder, config)
    except ValueError as error:
        one_line(error, str(folder))
        return
    assert found.rank == 2


@quietly
@given(content=st.binary(max_size=60) | values.map(lambda x: json.dumps(x).encode()))
def test_any_bytes_of_an_adapter_config_are_read_or_refused(adapters, tmp_path, content):
    saved, config = adapters["llama"]
    folder = tmp_path / "any"
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(ValueError) as caught:
        load_peft(folder, config)
    one_line(caught.value, str(folder / "adapter_config.json"))


@quietly
@given(shape=st.lists(st.integers(0, 40), max_size=3), letter=st.sampled_from("AB"))
def test_a_tensor_of_any_shape_fits_or_is_refused(adapters, tmp_path, shape, letter):
    saved, config = adapters["llama"]
    folder = tmp_path / "shape"
    shutil.copytree(saved, folder, dirs_exist_ok=True)
    name = f"base_model.model.model.layers.0.self_attn.q_proj.lora_{letter}.weight"
    tensors = load_file(saved / "adapter_model.safetensors")
    right = list(tensors[name].shape)
    tensors[name] = np.zeros(shape, np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    try:
        load_peft(folder, config)
    except ValueError as error:
        one_line(error, str(folder), name)
        return
    assert shape == right
