"""With lm_eval: parity with its own model for transformers, by the tokenizers of three families.

The public benchmarks need the hub and are not run by any test."""

import json
from types import SimpleNamespace

import pytest
from tokenizers import processors

from taskpgm.evaluation import benchmarks, check_harness, run_harness
from taskpgm.evaluation.benchmarks import harness_model
from taskpgm.models import load_hf
from taskpgm.tasks import corpus
from tests.lazily import Lazily

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]
torch, transformers = Lazily("torch"), Lazily("transformers")
huggingface = Lazily("lm_eval.models.huggingface", "optional extra: eval")

WORDS = "red green blue one two three north south east west cat dog bird fish".split()
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + "
    "'<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPE = {"vocab_size": 420, "initializer_range": 0.4}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
KINDS = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", SIZES),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", SIZES),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    ),
}


def family_tokenizer(kind):
    """Llama's prepends BOS, Qwen2's has none, and GPT-2's has one that it does not prepend."""
    tokenizer = corpus.train_tokenizer(
        [f"say {a} then {b}: {a}." for a in WORDS for b in WORDS], 400
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    if kind != "llama":
        tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        tokenizer.bos_token = None if kind == "qwen2" else tokenizer.eos_token
    # With no BOS the template has nothing to write there.
    tokenizer.chat_template = (
        TEMPLATE if kind == "llama" else TEMPLATE.replace("{{ bos_token }}", "")
    )
    return tokenizer


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """The same model and tokenizer, as ours and as the harness's."""
    folder = tmp_path_factory.mktemp(request.param)
    name, config, sizes = KINDS[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, config)(**SHAPE, **sizes)
    model = getattr(transformers, name)(config).eval()
    model.save_pretrained(folder)
    family_tokenizer(request.param).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    loaded = load_hf(folder)
    return SimpleNamespace(
        ours=harness_model(*loaded, tokenizer, batch_size=8),
        theirs=huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
        loaded=loaded,
        tokenizer=tokenizer,
    )


def request_of(*args):
    return SimpleNamespace(args=args)


def contexts(pair, chat, count):
    texts = [
        f"say {WORDS[i % 14]} then {WORDS[3 * i % 14]}" + ":" * (i % 3 > 0) + " then" * (i % 7)
        for i in range(count)
    ]
    if not chat:
        return texts
    return [pair.ours.apply_chat_template([{"role": "user", "content": text}]) for text in texts]


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_likelihoods_are_those_of_hf(pair, chat):
    asked = [
        request_of(context, ("" if chat else " ") + answer)
        for i, context in enumerate(contexts(pair, chat, 50))
        for answer in (*"ABC", f"{WORDS[i % 14]} {WORDS[5 * i % 14]}")
    ]
    asked += [request_of("", "cat dog"), request_of("say " * 150, "west"), request_of("a ", " b")]
    ours = pair.ours.loglikelihood(asked)
    theirs = pair.theirs.loglikelihood(asked, disable_tqdm=True)
    assert len(asked) >= 200
    assert [nats for nats, _ in ours] == pytest.approx([nats for nats, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


@pytest.mark.parametrize("chat", [False, True], ids=["plain", "chat"])
def test_generations_are_those_of_hf_token_by_token(pair, chat):
    # Some are what this model writes for a prompt: it stops somewhere.
    written = pair.theirs.generate_until([request_of("say red", {"max_gen_toks": 12})], True)[0]
    middle = written[len(written) // 2 :][:2] or "e"
    stops = (["\n\n"], ["<|im_end|>"], [middle, "###"], written[-1:] or "a")
    asked = [
        request_of(context, {"until": stops[i % 4], "max_gen_toks": 12})
        for i, context in enumerate(contexts(pair, chat, 24))
    ]
    ours = pair.ours.generate_until(asked)
    theirs = pair.theirs.generate_until(asked, disable_tqdm=True)
    assert ours == theirs
    assert len({len(text) for text in ours}) > 3


def test_local_tasks_score_as_with_hf(pair, tmp_path, monkeypatch):
    """Through lm_eval itself, few-shot examples and chat template included."""
    if pair.loaded[0].architecture != "llama":
        pytest.skip("the way through lm_eval is the same for all")
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    # It would start `pip list` and others each time, for a record that nobody asks for here.
    monkeypatch.setattr(evaluator, "add_env_info", lambda _: None)
    rows = [{"q": f"say {a} then", "a": i % 3, "w": a} for i, a in enumerate(WORDS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (
        "dataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'rows.jsonl'}\n"
        "test_split: test\nfewshot_split: test\ndoc_to_text: '{{q}}'\n"
    )
    (tmp_path / "choose.yaml").write_text(
        "task: torch_choose\noutput_type: multiple_choice\n"
        "doc_to_choice: ['red', 'green', 'two']\ndoc_to_target: a\n"
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n" + common
    )
    (tmp_path / "write.yaml").write_text(
        "task: torch_write\noutput_type: generate_until\ndoc_to_target: w\n"
        "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 4\n"
        "metric_list:\n  - metric: exact_match\n" + common
    )
    (tmp_path / "roll.yaml").write_text(
        "task: torch_roll\noutput_type: loglikelihood_rolling\ndoc_to_target: '{{q}}'\n"
        "metric_list:\n  - metric: word_perplexity\n" + common
    )
    names = ["torch_choose", "torch_write"]
    for chat, shots in ((False, 0), (True, 1)):
        ours = run_harness(
            *pair.loaded,
            pair.tokenizer,
            [*names, "torch_roll"],
            path=tmp_path,
            num_fewshot=shots,
            limit=10,
            chat_template=chat,
        )
        theirs = evaluator.simple_evaluate(
            pair.theirs,
            tasks=names,
            task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
            num_fewshot=shots,
            limit=10,
            apply_chat_template=chat,
            bootstrap_iters=0,
        )["results"]
        assert {"acc,none", "acc_norm,none"} <= ours["torch_choose"].keys()
        assert "exact_match,none" in ours["torch_write"]
        # No parity: theirs scores the BOS that this tokenizer writes as a token of the text.
        assert ours.pop("torch_roll")["word_perplexity,none"] > 1
        for task, metrics in ours.items():
            for metric, value in metrics.items():
                assert value == pytest.approx(theirs[task][metric], abs=1e-3), (task, metric)


def test_benchmarks_are_checked_before_anything_is_spent(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (optional extra: eval)")
    # Without the harness's own tasks, which take seconds to read; tests/stages/test_dry_run.py has
    # them.
    real = benchmarks._indexed
    monkeypatch.setattr(benchmarks, "_indexed", lambda folder, _: real(folder, False))
    (tmp_path / "rows.jsonl").write_text('{"q": "a", "a": "b"}\n')
    task = (
        "task: tiny_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {file}\n"
        "test_split: test\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\n"
        "doc_to_target: '{{{{q}}}}'\nmetric_list:\n  - metric: word_perplexity\n"
    )
    for name, file in (("here", "rows.jsonl"), ("gone", "none.jsonl")):
        (tmp_path / f"{name}.yaml").write_text(task.format(name=name, file=tmp_path / file))
    check_harness(["tiny_here"], tmp_path)
    check_harness(["tiny_here"], tmp_path / "here.yaml")
    with pytest.raises(OSError, match="harness: 'tiny_gone': its data cannot be had") as caught:
        check_harness(["tiny_here", "tiny_gone"], tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no task 'tiny_hre': did you mean 'tiny_here'"):
        check_harness(["tiny_hre"], tmp_path)
    with pytest.raises(FileNotFoundError, match="evaluation.harness_path: no such file"):
        check_harness(["tiny_here"], tmp_path / "nowhere")
