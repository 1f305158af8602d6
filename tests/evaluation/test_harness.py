"""The harness's model, with requests that look like the harness's, and with lm_eval itself."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from taskpgm.evaluation import HarnessModel, loglikelihood, run_harness, stops


@pytest.fixture(scope="module")
def model(tiny):
    return HarnessModel(tiny.config, tiny.params, tiny.tokenizer, batch_size=3, max_new_tokens=5)


def requests(*args):
    return [SimpleNamespace(args=arg) for arg in args]


def test_loglikelihood_is_that_of_the_continuation(tiny, model):
    asked = [("say red then", " blue"), ("", "cat dog"), ("say one ", "two three")]
    asked.append(("say " * 30, "west"))  # longer than the model's 64 positions
    found = model.loglikelihood(requests(*asked))
    for (context, continuation), (nats, greedy) in zip(asked[:3], found, strict=False):
        before = tiny.tokenizer(context.rstrip(), add_special_tokens=False)["input_ids"]
        whole = tiny.tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
        ids = [model.prefix_id, *whole]
        table = tiny.log_probs(ids)
        places = range(1 + len(before), len(ids))
        assert nats == pytest.approx(sum(table[at - 1, ids[at]] for at in places), rel=1e-4)
        assert greedy == all(table[at - 1].argmax() == ids[at] for at in places)
    assert np.isfinite(found[3][0])


def test_the_greedy_continuation_is_known_as_greedy(tiny, model):
    context = "say red then"
    ids = [model.prefix_id, *tiny.tokenizer(context, add_special_tokens=False)["input_ids"]]
    likeliest = int(tiny.log_probs(ids)[-1].argmax())
    window = loglikelihood.Window(ids, [likeliest])
    other = loglikelihood.Window(ids, [(likeliest + 1) % tiny.config.vocab_size])
    assert [greedy for _, greedy in model._score([window, other])] == [True, False]


def test_rolling_windows_score_each_token_once_with_full_context():
    pieces = list(loglikelihood.rolling_windows(range(10), -1, 4))
    assert [token for piece in pieces for token in piece.targets] == list(range(10))
    assert pieces[0] == ([-1, 0, 1, 2], [0, 1, 2, 3])
    assert pieces[-1] == ([5, 6, 7, 8], [8, 9])
    assert list(loglikelihood.rolling_windows([], -1, 4)) == []


def test_rolling_likelihood_of_a_text_that_fits_is_plain(tiny, model):
    text = "say red then blue: red"
    ids = [model.prefix_id, *tiny.tokenizer(text, add_special_tokens=False)["input_ids"]]
    table = tiny.log_probs(ids)
    expected = sum(table[at - 1, ids[at]] for at in range(1, len(ids)))
    found = model.loglikelihood_rolling(requests((text,), ("",), (text * 20,)))
    assert found[0] == pytest.approx(expected, rel=1e-4)
    assert found[1] == 0.0
    assert found[2] < found[0]


def test_generation_stops_before_a_stop_string(model):
    settings = {"until": ["\n"], "max_gen_toks": 5}
    prompts = ["say red then", "", "say cat"]
    texts = model.generate_until(requests(*((prompt, settings) for prompt in prompts)))
    assert len(texts) == 3
    letter = next(character for character in texts[0] if character)
    again = model.generate_until(requests(("say red then", settings | {"until": letter})))
    assert again == [texts[0].split(letter)[0]]
    assert stops.cut("one\ntwo###", ["###", "\n"]) == "one"
    with pytest.raises(ValueError, match="max_gen_toks=64 leaves no room"):
        model.generate_until(requests(("a", {"max_gen_toks": 64})))


def test_without_lm_eval_one_line_says_how_to_get_it(monkeypatch, tiny):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'taskpgm\[eval\]'"):
        run_harness(tiny.config, tiny.params, tiny.tokenizer, ["mmlu"])


def test_lm_eval_runs_a_task_of_our_own(tiny, tmp_path):
    """The real evaluator; the public benchmarks need the hub and are not run by any test."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (optional extra: eval)")
    rows = [{"q": f"say {word} then", "a": word, "b": "fish"} for word in ("red", "cat")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = (
        "dataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path / 'rows.jsonl'}\n"
        "test_split: test\ndoc_to_text: '{{q}}'\nnum_fewshot: 0\n"
    )
    (tmp_path / "choose.yaml").write_text(
        "task: tiny_choose\noutput_type: multiple_choice\n"
        "doc_to_choice: '{{[a, b]}}'\ndoc_to_target: 0\n"
        "metric_list:\n  - metric: acc\n" + common
    )
    (tmp_path / "write.yaml").write_text(
        "task: tiny_write\noutput_type: generate_until\ndoc_to_target: '{{a}}'\n"
        "generation_kwargs:\n  until: ['.']\n  max_gen_toks: 4\n"
        "metric_list:\n  - metric: exact_match\n" + common
    )
    (tmp_path / "roll.yaml").write_text(
        "task: tiny_roll\noutput_type: loglikelihood_rolling\ndoc_to_target: '{{q}}'\n"
        "metric_list:\n  - metric: word_perplexity\n" + common
    )
    found = run_harness(
        tiny.config,
        tiny.params,
        tiny.tokenizer,
        ["tiny_choose", "tiny_write", "tiny_roll"],
        batch_size=2,
        path=tmp_path,
    )
    assert 0 <= found["tiny_choose"]["acc,none"] <= 1
    assert found["tiny_write"]["exact_match,none"] == 0
    assert found["tiny_roll"]["word_perplexity,none"] > 1
    with pytest.raises(ValueError, match="no task 'tiny_chose'"):
        run_harness(tiny.config, tiny.params, tiny.tokenizer, ["tiny_chose"], path=tmp_path)
