"""config.json in, config.json out, and what is refused by name."""

import json

import jax
import pytest

from taskpgm.models import DecoderConfig, LoraConfig, init_params

LLAMA = dict(
    model_type="llama",
    architectures=["LlamaForCausalLM"],
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
)
GPT2 = dict(model_type="gpt2", vocab_size=64, n_embd=32, n_layer=2, n_head=4)


def test_written_config_reads_back_the_same(tiny, family):
    config = tiny(family, eos_token_id=(2, 3), bos_token_id=1)
    assert DecoderConfig.from_hf(config.to_hf()) == config
    assert json.loads(json.dumps(config.to_hf())) == config.to_hf()
    hash(config)


def test_num_params_counts_the_tree(tiny, family):
    config = tiny(family)
    shapes = jax.eval_shape(lambda key: init_params(config, key), jax.random.key(0))
    assert config.num_params == sum(x.size for x in jax.tree.leaves(shapes))


def test_from_hf_takes_a_folder_a_file_and_a_dict(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    wanted = DecoderConfig.from_hf(LLAMA)
    assert DecoderConfig.from_hf(tmp_path) == wanted
    assert DecoderConfig.from_hf(str(tmp_path / "config.json")) == wanted
    assert (wanted.num_kv_heads, wanted.head_dim, wanted.rope_theta) == (4, 8, 10000.0)


def test_both_spellings_of_rope_scaling_agree():
    old = LLAMA | {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}
    new = {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}
    assert DecoderConfig.from_hf(old) == DecoderConfig.from_hf(LLAMA | {"rope_parameters": new})


def test_windows_of_mistral_and_qwen2():
    mistral = LLAMA | {"model_type": "mistral", "architectures": None, "num_key_value_heads": 2}
    assert DecoderConfig.from_hf(mistral).windows == (4096, 4096)
    assert DecoderConfig.from_hf(mistral | {"sliding_window": None}).windows == (None, None)
    qwen2 = mistral | {"model_type": "qwen2", "sliding_window": 8}
    assert DecoderConfig.from_hf(qwen2).windows == (None, None)
    used = qwen2 | {"use_sliding_window": True, "max_window_layers": 1}
    assert DecoderConfig.from_hf(used).windows == (None, 8)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, "architecture 'mamba' is not supported"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "architecture 'LlamaForSequenceClassification' is not supported",
        ),
        ({"hidden_act": "relu"}, "activation 'relu' is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling 'yarn'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope scaling 'longrope'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "key 'factor' is missing"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"quantised weights \(gptq\)"),
        ({"hidden_size": None}, "key 'hidden_size' is missing"),
        ({"num_key_value_heads": 3}, "config: num_heads 4 is not a multiple of num_kv_heads 3"),
    ],
)
def test_what_is_not_supported_is_named(change, said):
    raw = {key: value for key, value in (LLAMA | change).items() if value is not None}
    with pytest.raises(ValueError, match=said) as error:
        DecoderConfig.from_hf(raw)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": "gptq"}, "quantization_config must be an object or null"),
        ({"hidden_size": "16"}, "hidden_size must be a whole number above 0, not '16'"),
        ({"hidden_size": 16.0}, "hidden_size must be a whole number above 0, not 16.0"),
        ({"hidden_size": None}, "hidden_size must be a whole number above 0, not None"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a whole number above 0, not 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ({"num_key_value_heads": -2}, "num_key_value_heads must be a whole .* or null, not -2"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number above 0, not nan"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps must be a number above 0"),
        ({"rope_parameters": "default"}, "rope_parameters must be an object or null"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, r"rope scaling \['linear'\] is not"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": "two"}},
            "rope scaling: factor must be a number above 0, not 'two'",
        ),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings must be true or false or null"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of strings or null"),
        ({"hidden_act": ["silu"]}, "hidden_act must be a string"),
        ({"model_type": ["llama"]}, r"architecture \['llama'\] is not supported"),
        ({"eos_token_id": {"id": 2}}, "eos_token_id must be a token's number or a list of them"),
    ],
)
def test_values_of_the_wrong_kind_are_named(change, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | change))
    with pytest.raises(ValueError, match=f"config.json: {said}"):
        DecoderConfig.from_hf(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"add_cross_attention": True},
    ],
)
def test_gpt2_variants_are_named(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        DecoderConfig.from_hf(GPT2 | change)


def test_unusable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json: no such file"):
        DecoderConfig.from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: not a JSON file"):
        DecoderConfig.from_hf(tmp_path)


def test_lora_config():
    assert LoraConfig(targets=("o_proj", "q_proj")) == LoraConfig(targets=("q_proj", "o_proj"))
    with pytest.raises(ValueError, match="lora.targets: 'c_attn' is none of"):
        LoraConfig(targets=("c_attn",))
    gpt2 = DecoderConfig.from_hf(GPT2)
    with pytest.raises(ValueError, match="gpt2 has no 'gate_proj'"):
        DecoderConfig(**{**vars(gpt2), "lora": LoraConfig(targets=("gate_proj",))})
