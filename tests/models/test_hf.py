"""Loading and saving model folders without torch: round trips, shards, dtypes, meshes."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from taskpgm.models import DecoderConfig, load_hf, merge_lora, save_hf
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
    half = jax.tree.map(lambda x: np.asarray(x).astype(dtype), randomized(config))
    save_hf(tmp_path, config, half)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
    got, loaded = load_hf(tmp_path, dtype=dtype)
    assert (got.dtype, got.param_dtype) == (dtype, dtype)
    equal(loaded, half)
    _, wide = load_hf(tmp_path)
    equal(wide, jax.tree.map(lambda x: x.astype(np.float32), half))


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


GENERATION = "generation_config.json"


def write_generation(folder, **content):
    folder.mkdir(exist_ok=True)
    (folder / GENERATION).write_text(json.dumps(content))


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_the_ends_of_generation_config_come_first(folder):
    """As for Llama-3-Instruct, whose config.json has only the end-of-text id."""
    assert load_hf(folder)[0].eos_token_id is None
    write_generation(folder, eos_token_id=[2, 9], bos_token_id=1, temperature=0.6)
    config = DecoderConfig.from_hf(folder)
    assert (config.eos_token_id, config.bos_token_id) == ((2, 9), 1)
    assert DecoderConfig.from_hf(folder / "config.json") == config
    write_generation(folder, eos_token_id=None, temperature=0.6)
    assert load_hf(folder)[0].eos_token_id is None


@pytest.mark.parametrize(
    ("before", "eos", "trained", "wanted"),
    [
        ({}, 2, (), 2),
        ({}, None, (), None),
        ({}, 2, (5,), [2, 5]),
        ({}, (2, 3), (3,), [2, 3]),
        ({"eos_token_id": [7, 2]}, None, (), [7, 2]),  # what config.json has is what it said
        ({"eos_token_id": 7}, None, (5,), [7, 5]),
    ],
)
def test_a_saved_model_ends_as_its_base_and_as_it_was_trained(
    tiny, randomized, tmp_path, before, eos, trained, wanted
):
    config = tiny(eos_token_id=eos)
    write_generation(tmp_path / "base", **before)
    out = tmp_path / "out"
    save_hf(out, config, randomized(config), base=tmp_path / "base", trained_ends=trained)
    assert read(out, GENERATION).get("eos_token_id") == wanted
    assert read(out, "config.json")["eos_token_id"] == wanted
    again = load_hf(out)[0].eos_token_id
    assert again == (tuple(wanted) if isinstance(wanted, list) else wanted)


def test_the_rest_of_generation_config_travels(tiny, randomized, tmp_path):
    config = tiny(bos_token_id=1, eos_token_id=2)
    sampling = dict(do_sample=True, temperature=0.6, top_p=0.9)
    write_generation(tmp_path / "base", **sampling, _from_model_config=True)
    save_hf(tmp_path / "out", config, randomized(config), base=tmp_path / "base")
    assert read(tmp_path / "out", GENERATION) == sampling | {"bos_token_id": 1, "eos_token_id": 2}


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
