"""Parity with `transformers` and `peft` where torch is not: files made by tests/golden/make.py."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from taskpgm.models import Decoder, generate, load_hf, load_peft, save_peft

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def unpack(name: str, folder: Path):
    """The checkpoint (and adapter) of a golden file as folders; returns its arrays."""
    golden = np.load(GOLDEN / f"{name}.npz")

    def part(prefix, weights, settings):
        tensors = {
            key.removeprefix(prefix): golden[key].astype(np.float32)
            for key in golden
            if key.startswith(prefix) and golden[key].dtype == np.float16
        }
        save_file(tensors, folder / weights)
        (folder / settings[0]).write_text(str(golden[settings[1]]))

    part("tensor:", "model.safetensors", ("config.json", "config"))
    if "adapter:config" in golden:
        settings = ("adapter_config.json", "adapter:config")
        part("adapter:", "adapter_model.safetensors", settings)
    return golden


def close(got, wanted):
    """The project's bound on parity: 1e-4, absolute and relative. Not to be relaxed."""
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-4)


def test_there_are_golden_files_of_every_family():
    assert {name.split("_")[0] for name in NAMES} == {"llama", "mistral", "qwen2", "gpt2"}


@pytest.mark.parametrize("name", NAMES)
def test_logits(name, tmp_path):
    golden = unpack(name, tmp_path)
    config, params = load_hf(tmp_path)
    run = jax.jit(lambda params, tokens: Decoder(config).apply({"params": params}, tokens))
    close(run(params, golden["tokens"]), golden["logits"])


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2_tied_window", "gpt2"])
def test_greedy_tokens(name, tmp_path):
    golden = unpack(name, tmp_path)
    config, params = load_hf(tmp_path)
    prompt = golden["tokens"][0, :8].tolist()
    assert generate(config, params, [prompt], max_new_tokens=16) == [golden["greedy"].tolist()]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_adapters_of_peft(name, tmp_path):
    golden = unpack(name, tmp_path)
    config, params = load_hf(tmp_path)
    settings, lora = load_peft(tmp_path, config)
    assert (settings.rank, settings.alpha) == (4, 10.0)
    config = dataclasses.replace(config, lora=settings)
    run = jax.jit(lambda lora: Decoder(config).apply({"params": params, "lora": lora}, tokens))
    tokens = golden["tokens"]
    close(run(lora), golden["adapter:logits"])
    # And out again: what comes back is the same adapter.
    save_peft(tmp_path / "out", config, lora, "base")
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["r"] == 4
    again, back = load_peft(tmp_path / "out", config)
    assert again == settings
    close(run(back), golden["adapter:logits"])
