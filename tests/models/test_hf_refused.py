"""Model folders that cannot be loaded: refused in one line that names the file."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from taskpgm.models import load_hf, save_hf

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tiny, randomized, tmp_path):
    """A saved tiny Llama."""
    config = tiny()
    save_hf(tmp_path / "model", config, randomized(config))
    return tmp_path / "model"


def edit(folder, **tensors):
    """Change, add or (None) remove tensors of the weights file."""
    old = {key: x.copy() for key, x in load_file(folder / WEIGHTS).items()}
    save_file({key: x for key, x in (old | tensors).items() if x is not None}, folder / WEIGHTS)


def refused(folder, said, kind=ValueError, **options):
    with pytest.raises(kind, match=said) as error:
        load_hf(folder, **options)
    assert "\n" not in str(error.value)


def test_folders_without_config_or_weights(folder, tmp_path):
    refused(tmp_path / "none", "none.*no such file", FileNotFoundError)
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    refused(folder, "pytorch_model.bin: a pickle, .* is not read; convert it")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, "no weights", FileNotFoundError)
    (folder / "config.json").unlink()
    refused(folder, "config.json: no such file", FileNotFoundError)


@pytest.mark.parametrize("name", ["model.Q4_K_M.gguf", "consolidated.00.pth", "model.pt", "x.BIN"])
def test_weights_of_other_formats_are_named_with_the_way_to_convert_them(folder, name):
    (folder / WEIGHTS).rename(folder / name)
    line = f"{name}: .* is not read; convert it once to safetensors, .*save_pretrained"
    refused(folder, line)
    with pytest.raises(ValueError, match="gguf_file=" if name.endswith("gguf") else "pickle"):
        load_hf(folder)


def test_a_llama_has_no_window(folder):
    """transformers reads layer_types of a Llama and then finds no window in its config."""
    raw = json.loads((folder / "config.json").read_text())
    raw["layer_types"] = ["full_attention", "sliding_attention"]
    (folder / "config.json").write_text(json.dumps(raw))
    refused(folder, "layer_types of a llama model are all full_attention")
    raw["layer_types"] = ["full_attention"] * 2
    (folder / "config.json").write_text(json.dumps(raw))
    load_hf(folder)


def test_missing_extra_and_misshapen_tensors(folder):
    name = "model.layers.1.mlp.up_proj.weight"
    good = load_file(folder / WEIGHTS)[name]
    edit(folder, **{name: None})
    refused(folder, f"tensor {name} is missing")
    edit(folder, **{name: good[:-1]})
    refused(folder, rf"tensor {name} has shape \[47, 32\]")
    edit(folder, **{name: good, "model.layers.2.mlp.up_proj.weight": good})
    refused(folder, "tensor model.layers.2.mlp.up_proj.weight is not part of this llama model")


def test_quantised_tensors(folder):
    name = "model.layers.0.mlp.up_proj.weight"
    edit(folder, **{name: np.ones((48, 32), np.int8)})
    refused(folder, f"tensor {name} has type I8")


@pytest.mark.parametrize("size", [4, 100, 5000, -1])
def test_files_cut_off(folder, size):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:size])
    refused(folder, f"{WEIGHTS}: not a whole safetensors file")


def test_not_safetensors(folder):
    (folder / WEIGHTS).write_bytes((8).to_bytes(8, "little") + b"notjson.")
    refused(folder, f"{WEIGHTS}: not a whole safetensors file")


def rewrite_header(path, change):
    """Changes a file's header in place, its data untouched."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(change(json.loads(content[8 : 8 + length]))).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


def test_headers_that_are_no_objects(folder):
    rewrite_header(folder / WEIGHTS, list)
    refused(folder, f"{WEIGHTS}: not a whole safetensors file")
    (folder / WEIGHTS).write_bytes((10**5).to_bytes(8, "little") + b"[" * 10**5)
    refused(folder, f"{WEIGHTS}: not a whole safetensors file")


@pytest.mark.parametrize(
    "change",
    [
        lambda item: None,
        lambda item: {k: v for k, v in item.items() if k != "data_offsets"},
        lambda item: item | {"data_offsets": item["data_offsets"][:1]},
        lambda item: item | {"data_offsets": item["data_offsets"][::-1]},
        lambda item: item | {"shape": [-32]},
        lambda item: item | {"dtype": 32},
        lambda item: item | {"dtype": "F33"},
        lambda item: item | {"shape": [31]},
        lambda item: item | {"dtype": "BF16"},
    ],
)
def test_a_tensor_whose_header_cannot_be(folder, change):
    name = "model.norm.weight"
    rewrite_header(folder / WEIGHTS, lambda header: header | {name: change(header[name])})
    refused(folder, f"{WEIGHTS}: not a whole safetensors file")


@pytest.mark.parametrize("by", [-64, 64 + 4, 4])
def test_tensors_lie_one_after_the_other(folder, by):
    """Offsets that overlap or leave a gap would load wrong weights of the right shape."""
    name = "model.norm.weight"

    def change(header):
        first, last = header[name]["data_offsets"]
        return header | {name: header[name] | {"data_offsets": [first + by, last + by]}}

    rewrite_header(folder / WEIGHTS, change)
    refused(folder, f"{WEIGHTS}: not a whole safetensors file .*{name}")


def test_bytes_of_no_tensor(folder):
    with (folder / WEIGHTS).open("ab") as file:
        file.write(b"more")
    refused(folder, f"{WEIGHTS}: not a whole safetensors file")


def test_the_order_of_names_in_a_header_is_free(folder):
    _, before = load_hf(folder)
    rewrite_header(folder / WEIGHTS, lambda header: dict(reversed(header.items())))
    jax.tree.map(np.testing.assert_array_equal, load_hf(folder)[1], before)


def test_bad_indices(tiny, randomized, tmp_path):
    config = tiny()
    save_hf(tmp_path, config, randomized(config), shard_bytes=20_000)
    index = json.loads((tmp_path / INDEX).read_text())
    first = min(index["weight_map"].values())
    (tmp_path / first).rename(tmp_path / "away")
    refused(tmp_path, f"{first}: no such file", FileNotFoundError)
    (tmp_path / "away").rename(tmp_path / first)
    index["weight_map"]["model.other"] = first
    (tmp_path / INDEX).write_text(json.dumps(index))
    refused(tmp_path, "tensor model.other is missing")
    (tmp_path / INDEX).write_text("[]")
    refused(tmp_path, f"{INDEX}: not a JSON object")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    refused(tmp_path, f"{INDEX}: weight_map is not an object of file names")


def test_an_unsupported_model_is_refused_before_its_weights(folder):
    (folder / WEIGHTS).write_bytes(b"never looked at")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | {"hidden_act": "relu"}))
    refused(folder, "config.json: activation 'relu' is not supported")


def test_headers_are_checked_before_any_weight_is_read(folder, monkeypatch):
    edit(folder, **{"model.norm.weight": None})

    def read(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr("taskpgm.models.hf_weights.read_tensor", read)
    monkeypatch.setattr("taskpgm.models.hf_weights.read_parts", read)
    refused(folder, "tensor model.norm.weight is missing")


def test_damaged_generation_configs_are_named(folder):
    path = folder / "generation_config.json"
    path.write_text('{"eos_token_id": "</s>"}')
    refused(folder, f"{path}: eos_token_id must be a token's number or a list of them")
    path.write_text("{")
    refused(folder, f"{path}: not a JSON file")
