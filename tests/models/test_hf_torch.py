"""Keys of config.json and adapter_config.json: read as transformers and peft do, or refused."""

import dataclasses
import json
from functools import partial

import jax
import numpy as np
import pytest

from taskpgm.models import Decoder, load_hf, load_peft, save_hf
from tests.lazily import Lazily

torch = Lazily("torch", "torch is not installed")
transformers = Lazily("transformers")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.*changes the base weights:UserWarning"),  # our own point
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),  # peft's
]

FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3 = dict(rope_type="llama3", rope_theta=10000.0, factor=8.0)
LLAMA3 |= dict(low_freq_factor=0.5, high_freq_factor=4.0)
LINEAR = dict(rope_type="linear", factor=2.0)
PLAIN = dict(rope_type="default", rope_theta=100.0)
READ = [
    ("llama", {"rms_norm_eps": 0.1}),
    ("llama", {"rope_parameters": None, "rope_theta": 100.0}),
    ("llama", {"rope_parameters": PLAIN, "rope_theta": 50.0}),
    ("llama", {"rope_parameters": PLAIN, "rope_scaling": LINEAR}),
    ("llama", {"rope_parameters": LINEAR, "rope_theta": 50.0}),
    ("llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}}),
    ("llama", {"rope_parameters": LLAMA3, "original_max_position_embeddings": 16}),
    ("llama", {"sliding_window": 4, "use_sliding_window": True}),  # read by others only
    ("mistral", {"sliding_window": None}),
    ("mistral", {"layer_types": None}),
    ("mistral", {"layer_types": [FULL, SLIDING]}),
    ("mistral", {"layer_types": [FULL, FULL]}),
    ("qwen2", {"sliding_window": 4}),
    ("qwen2", {"sliding_window": 4, "use_sliding_window": True, "layer_types": [FULL, SLIDING]}),
    (
        "qwen2",
        {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}
        | {"layer_types": None},
    ),
    ("gpt2", {"layer_norm_epsilon": 0.1}),
    ("gpt2", {"reorder_and_upcast_attn": True}),
    ("gpt2", {"num_attention_heads": 8}),  # a second name, which wins
]
REFUSED = [
    ("llama", {"is_causal": False}),
    ("llama", {"partial_rotary_factor": 0.5}),
    ("llama", {"hidden_act": "gelu"}),
    ("mistral", {"layer_types": [SLIDING, FULL]}),
    ("mistral", {"is_causal": False}),
    ("qwen2", {"sliding_window": 4, "use_sliding_window": True, "layer_types": [SLIDING, FULL]}),
    ("gpt2", {"activation_function": "gelu"}),
    ("gpt2", {"scale_attn_weights": False}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """saved(family) -> a folder with a random model of torch."""
    shape = dict(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    shape |= dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64)
    shape |= dict(initializer_range=0.25)
    gpt2 = dict(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    configs = {
        "llama": transformers.LlamaConfig(**shape),
        "mistral": transformers.MistralConfig(**shape, sliding_window=6),
        "qwen2": transformers.Qwen2Config(**shape),
        "gpt2": transformers.GPT2Config(**gpt2, initializer_range=0.25),
    }
    folders = {}
    for name, config in configs.items():
        torch.manual_seed(0)
        folders[name] = tmp_path_factory.mktemp(name)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folders[name])
    return folders.__getitem__


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 64, (1, 40))


def changed(folder, out, change):
    """A copy of a model folder with other keys in its config.json."""
    out.mkdir()
    (out / "model.safetensors").symlink_to(folder / "model.safetensors")
    raw = json.loads((folder / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(raw | change))
    return out


@partial(jax.jit, static_argnums=0)
def run(config, variables, tokens):
    return Decoder(config).apply(variables, tokens)


def logits(config, params, tokens, **lora):
    return np.asarray(run(config, {"params": params, **lora}, tokens))


def their_logits(model, tokens):
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits.numpy()


def close(got, wanted):
    """The project's bound on parity: 1e-4, absolute and relative. Not to be relaxed."""
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "change"), READ, ids=str)
def test_a_key_is_read_as_theirs(saved, tokens, tmp_path, family, change):
    folder = changed(saved(family), tmp_path / "model", change)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wanted = their_logits(theirs, tokens)
    config, params = load_hf(folder)
    close(logits(config, params, tokens), wanted)
    save_hf(tmp_path / "back", config, params)
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    close(their_logits(back, tokens), wanted)


@pytest.mark.parametrize(("family", "change"), REFUSED, ids=str)
def test_a_key_that_changes_their_logits_is_refused(saved, tokens, tmp_path, family, change):
    """It is refused by name; and with transformers it does change the logits."""
    folder = changed(saved(family), tmp_path / "model", change)
    with pytest.raises(ValueError, match="|".join([*change, "activation", "layer_types"])):
        load_hf(folder)
    load = transformers.AutoModelForCausalLM.from_pretrained
    plain = their_logits(load(saved(family), dtype=torch.float32), tokens)
    other = their_logits(load(folder, dtype=torch.float32), tokens)
    assert np.abs(plain - other).max() > 1e-3 or "partial_rotary_factor" in change


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal"])
def test_adapters_initialised_without_the_base(saved, tokens, tmp_path, init):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = transformers.AutoModelForCausalLM.from_pretrained(saved("llama"))
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], init_lora_weights=init
    )
    adapted = peft.get_peft_model(model, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, x in adapted.named_parameters():
            if "lora_" in name:
                x.add_(0.1 * torch.randn_like(x))
    adapted.save_pretrained(tmp_path)
    load = transformers.AutoModelForCausalLM.from_pretrained
    theirs = peft.PeftModel.from_pretrained(load(saved("llama")), str(tmp_path))
    config, params = load_hf(saved("llama"))
    settings, lora = load_peft(tmp_path, config)
    config = dataclasses.replace(config, lora=settings)
    close(logits(config, params, tokens, lora=lora), their_logits(theirs, tokens))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_adapters_that_change_the_base(saved, tokens, tmp_path, init):
    """They are refused as saved, and imported once PEFT has converted them to plain LoRA."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    load = transformers.AutoModelForCausalLM.from_pretrained
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=init
    )
    adapted = peft.get_peft_model(load(saved("llama")), settings)
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(tmp_path / "initial")
    adapted.peft_config["default"].init_lora_weights = init
    torch.manual_seed(1)
    with torch.no_grad():
        for name, x in adapted.named_parameters():
            if "lora_" in name:
                x.add_(0.1 * torch.randn_like(x))
    wanted = their_logits(adapted, tokens)
    adapted.save_pretrained(tmp_path / "as_it_is")
    config, params = load_hf(saved("llama"))
    with pytest.raises(ValueError, match=f'init_lora_weights = "{init}"'):
        load_peft(tmp_path / "as_it_is", config)
    initial = str(tmp_path / "initial")
    adapted.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=initial)
    settings, lora = load_peft(tmp_path / "plain", config)
    config = dataclasses.replace(config, lora=settings)
    close(logits(config, params, tokens, lora=lora), wanted)
