"""Folders in and out without torch: round trips, shards, types, meshes, and every bad folder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from taskpgm.models import load_hf, merge_lora, save_hf
from taskpgm.models.safetensors_file import read_header, read_parts
from taskpgm.training.mesh import make_mesh

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def equal(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


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


# ---------------------------------------------------------------- what works


def test_round_trip(tiny, randomized, tmp_path, family):
    config = tiny(family)
    params = randomized(config)
    save_hf(tmp_path, config, params)
    got, loaded = load_hf(tmp_path)
    assert got == config
    equal(loaded, params)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        WEIGHTS,
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_types_of_the_file_and_of_the_parameters(tiny, randomized, tmp_path, dtype):
    config = tiny()
    half = jax.tree.map(lambda x: x.astype(dtype), randomized(config))
    save_hf(tmp_path, config, half)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
    got, loaded = load_hf(tmp_path, dtype=dtype)
    assert (got.dtype, got.param_dtype) == (dtype, dtype)
    equal(loaded, half)
    _, wide = load_hf(tmp_path)
    equal(wide, jax.tree.map(lambda x: x.astype(jnp.float32), half))


def test_many_files_with_an_index(tiny, randomized, tmp_path):
    config = tiny("gpt2")
    params = randomized(config)
    save_hf(tmp_path, config, params, shard_bytes=20_000)
    files = sorted(path.name for path in tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert json.loads((tmp_path / INDEX).read_text())["metadata"]["total_size"] == sum(
        x.nbytes for name in files for x in load_file(tmp_path / name).values()
    )
    equal(load_hf(tmp_path)[1], params)
    # One file over many: nothing of the old ones is left.
    save_hf(tmp_path, config, params)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        WEIGHTS,
    ]


def test_adapters_are_merged_and_other_files_left_alone(tiny, randomized, with_lora, tmp_path):
    config, lora = with_lora(tiny(), targets=("q_proj", "down_proj"))
    params = randomized(config)
    (tmp_path / "tokenizer.json").write_text("{}")
    save_hf(tmp_path, config, params, lora)
    assert (tmp_path / "tokenizer.json").read_text() == "{}"
    merged = merge_lora(config, params, lora)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), load_hf(tmp_path)[1], merged
    )


def test_gpt2_as_it_was_published(tiny, randomized, tmp_path):
    """Names without the prefix, and masks stored beside the weights."""
    config = tiny("gpt2")
    params = randomized(config)
    save_hf(tmp_path, config, params)
    tensors = {
        key.removeprefix("transformer."): x for key, x in load_file(tmp_path / WEIGHTS).items()
    }
    masks = {f"h.{i}.attn.bias": np.ones((1, 1, 8, 8), np.float32) for i in range(2)}
    save_file(tensors | masks, tmp_path / WEIGHTS)
    equal(load_hf(tmp_path)[1], params)


def test_a_tied_head_in_the_file_is_no_extra_tensor(tiny, randomized, tmp_path):
    config = tiny("llama3")
    save_hf(tmp_path, config, randomized(config))
    embedding = load_file(tmp_path / WEIGHTS)["model.embed_tokens.weight"]
    edit(tmp_path, **{"lm_head.weight": embedding})
    load_hf(tmp_path)
    edit(tmp_path, **{"lm_head.weight": embedding + 1})
    with pytest.raises(ValueError, match="lm_head.weight differs from the embedding"):
        load_hf(tmp_path)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_tensor_goes_to_its_shards(tiny, randomized, tmp_path, family):
    config = tiny(family)
    params = randomized(config)
    save_hf(tmp_path / "one", config, params)
    with jax.set_mesh(make_mesh({"fsdp": 4, "tensor": 2})):
        _, loaded = load_hf(tmp_path / "one")
    equal(loaded, params)
    kernel = loaded["layers"]["attention"]["q_proj"]["kernel"]
    assert kernel.sharding.spec == jax.P(None, "fsdp", "tensor")
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    save_hf(tmp_path / "two", config, loaded)
    assert (tmp_path / "one" / WEIGHTS).read_bytes() == (tmp_path / "two" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("size", [1, 200, 3000])  # a row, some rows, most tensors whole
def test_parts_are_read_in_blocks_of_any_size(tmp_path, monkeypatch, size):
    monkeypatch.setattr("taskpgm.models.safetensors_file.BLOCK_BYTES", size)
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=(24, 10)).astype(np.float32) for name in "ab"}
    tensors["row"] = rng.normal(size=50).astype(np.float32)
    save_file(tensors, tmp_path / "x")
    entries = read_header(tmp_path / "x")
    indices = [np.s_[:, :], np.s_[7:19, :], np.s_[:, 3:5], np.s_[23:, 9:]]
    first = read_parts(entries["a"], indices)
    equal(first, [tensors["a"][index] for index in indices])
    second = read_parts(entries["b"], indices, first)  # into the same memory
    equal(second, [tensors["b"][index] for index in indices])
    assert all(x is y for x, y in zip(first, second, strict=True))
    equal(read_parts(entries["row"], [(slice(4, 30),)]), [tensors["row"][4:30]])
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-1])
    last = max(entries, key=lambda name: entries[name].start)
    with pytest.raises(ValueError, match="cut off while it was being read"):
        read_parts(entries[last], [(slice(None),) * len(entries[last].shape)])


def test_a_save_that_fails_leaves_no_folder_that_opens(folder, monkeypatch):
    config, params = load_hf(folder)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_hf(folder, config, params)
    assert not list(folder.glob(".*"))
    with pytest.raises(FileNotFoundError, match="config.json: no such file"):
        load_hf(folder)


# ---------------------------------------------------------------- what is refused, in one line


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
    """Half of it the weights of another tensor (of the right size and shape, and wrong), a gap."""
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
