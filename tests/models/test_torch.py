"""Live parity with torch: `transformers` and `peft` open our folders, and we open theirs."""

import copy
import dataclasses
import importlib.util
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from taskpgm.models import Decoder, check_hf, generate, load_hf, save_hf, save_peft
from tests.lazily import Lazily

torch = Lazily("torch", "torch is not installed")
transformers = Lazily("transformers")
pytestmark = pytest.mark.torch

CASES = (
    "llama",
    "llama_mha_tied",
    "llama_biases",
    "llama_linear",
    "llama_llama3",
    "mistral",
    "qwen2",
    "qwen2_tied_window",
    "gpt2",
)


@pytest.fixture(scope="module")
def golden():
    """The script that makes the golden files: its configs are those of these tests."""
    pytest.importorskip("peft", reason="peft is not installed")
    path = Path(__file__).parents[1] / "golden" / "make.py"
    spec = importlib.util.spec_from_file_location("golden_make", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert set(CASES) == set(module.CONFIGS)
    return module


@pytest.fixture
def theirs(golden):
    """theirs(name) -> a random torch model, norms and biases away from 1 and 0."""

    def make(name):
        torch.manual_seed(0)
        config = copy.deepcopy(golden.CONFIGS[name])  # a model's .to() writes into it
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
        return model.eval()

    return make


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 64, (2, 24))


def torch_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.float().numpy()


@partial(jax.jit, static_argnums=0)
def run(config, variables, tokens):
    return Decoder(config).apply(variables, tokens)


def logits(config, tokens, **variables):
    return run(config, variables, tokens)


def close(got, wanted):
    """The project's bound on parity: 1e-4, absolute and relative. Not to be relaxed."""
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_both_directions(theirs, tokens, tmp_path, name):
    model = theirs(name)
    wanted = torch_logits(model, tokens)
    model.save_pretrained(tmp_path / "theirs")
    config, params = load_hf(tmp_path / "theirs")
    close(logits(config, tokens, params=params), wanted)
    save_hf(tmp_path / "ours", config, params, shard_bytes=20_000)  # with an index
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_array_equal(torch_logits(back, tokens), wanted)


@pytest.mark.parametrize(("name", "dtype"), [("mistral", "bfloat16"), ("gpt2", "float16")])
def test_half_precision_shards_of_theirs(theirs, tokens, tmp_path, name, dtype):
    model = theirs(name).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    config, params = load_hf(tmp_path)
    close(logits(config, tokens, params=params), torch_logits(back.eval(), tokens))


@pytest.mark.parametrize(("name", "dtype"), [("qwen2", "bfloat16"), ("gpt2", "float16")])
def test_half_precision_files_of_ours(theirs, tokens, tmp_path, name, dtype):
    model = theirs(name)
    model.save_pretrained(tmp_path / "theirs")
    config, params = load_hf(tmp_path / "theirs", dtype=dtype)
    save_hf(tmp_path / "ours", config, params, shard_bytes=20_000)
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    wanted = model.to(getattr(torch, dtype))  # rounded by torch, as ours are by jax
    assert opened.dtype == wanted.dtype
    for (key, got), (_, weight) in zip(
        opened.state_dict().items(), wanted.state_dict().items(), strict=True
    ):
        assert got.dtype == weight.dtype and torch.equal(got, weight), key
    config, params = load_hf(tmp_path / "ours")
    close(logits(config, tokens, params=params), torch_logits(opened.float().eval(), tokens))


def test_greedy_tokens_of_a_left_padded_batch(theirs, tmp_path):
    """The family that learns positions by heart; single rows of all families: test_golden.py."""
    model = theirs("gpt2")
    model.save_pretrained(tmp_path)
    config, params = load_hf(tmp_path)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 64, n).tolist() for n in (3, 9, 14)]
    pad = [14 - len(prompt) for prompt in prompts]
    rows = torch.tensor([[0] * n + p for n, p in zip(pad, prompts, strict=True)])
    mask = torch.tensor([[0] * n + [1] * (14 - n) for n in pad])
    options = dict(attention_mask=mask, do_sample=False, eos_token_id=None, pad_token_id=0)
    wanted = model.generate(rows, max_new_tokens=16, **options)[:, 14:].tolist()
    assert generate(config, params, prompts, max_new_tokens=16) == wanted


def test_rows_end_where_theirs_end(theirs, tmp_path):
    """Stop ids are their end-of-sequence ids, read from config.json: one or several."""
    model = theirs("llama")
    model.save_pretrained(tmp_path)
    first, params = load_hf(tmp_path)
    prompts = np.random.default_rng(1).integers(3, 64, (3, 9)).tolist()
    free = generate(first, params, prompts, max_new_tokens=16)
    ends = set()
    for stops in (free[0][5], [free[1][0], free[2][7]], 2):
        model.config.eos_token_id = model.generation_config.eos_token_id = stops
        model.save_pretrained(tmp_path)
        config = check_hf(tmp_path)
        ids = config.eos_token_id if isinstance(stops, list) else (config.eos_token_id,)
        assert list(ids) == (stops if isinstance(stops, list) else [stops])
        rows = torch.tensor(prompts)
        options = dict(attention_mask=torch.ones_like(rows), do_sample=False, pad_token_id=0)
        whole = model.generate(rows, max_new_tokens=16, **options)[:, 9:].tolist()
        wanted = []
        for row in whole:  # theirs keep the id that ended a row, and pad after it
            end = next((i for i, token in enumerate(row) if token in ids), None)
            assert end is None or not any(row[end + 1 :])
            wanted.append(row[:end])
            ends.add(end)
        assert generate(first, params, prompts, max_new_tokens=16, stop_ids=ids) == wanted
    assert {0, None} < ends  # at once, never, and on the way


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_adapters_under_peft_and_merged(theirs, tokens, tmp_path, with_lora, name):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    theirs(name).save_pretrained(tmp_path / "base")
    config, params = load_hf(tmp_path / "base")
    targets = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")
    config, lora = with_lora(config, rank=3, alpha=7.0, targets=targets)
    wanted = logits(config, tokens, params=params, lora=lora)
    assert np.abs(wanted - logits(config, tokens, params=params)).max() > 0.1

    save_peft(tmp_path / "adapter", config, lora, str(tmp_path / "base"))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    close(torch_logits(adapted, tokens), wanted)

    save_hf(tmp_path / "merged", config, params, lora)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    close(torch_logits(merged, tokens), wanted)


def test_patterns_and_rank_stabilised_scales_of_peft(golden, theirs, tokens, tmp_path):
    import peft

    from taskpgm.models import load_peft

    model = theirs("gpt2")
    model.save_pretrained(tmp_path / "base")
    config, params = load_hf(tmp_path / "base")
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=5,
        use_rslora=True,
        target_modules=["c_attn", "attn.c_proj"],
        rank_pattern={"c_attn": 6},
        alpha_pattern={"attn.c_proj": 3},
        init_lora_weights="gaussian",
        fan_in_fan_out=True,
    )
    adapted = peft.get_peft_model(model, settings).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    lora_config, lora = load_peft(tmp_path / "adapter", config)
    assert lora_config.rank == 6
    config = dataclasses.replace(config, lora=lora_config)
    close(logits(config, tokens, params=params, lora=lora), torch_logits(adapted, tokens))
