"""The harness's model, with requests that look like the harness's."""

import copy
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from taskpgm.evaluation import (
    HarnessModel,
    harness,
    loglikelihood,
    run_harness,
    stops,
)
from taskpgm.tasks import Example, encode


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
    # Another test of this process may have imported parts of it.
    for name in {"lm_eval", *(name for name in sys.modules if name.startswith("lm_eval."))}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'taskpgm\[eval\]'"):
        run_harness(tiny.config, tiny.params, tiny.tokenizer, ["mmlu"])


def test_requests_that_begin_alike_are_read_once():
    question, other = [5, 6, 7], [5, 6]
    windows = [
        *(loglikelihood.Window(question, [answer]) for answer in (1, 2, 3, 4)),
        loglikelihood.Window([*question, 8], [8, 9]),
        loglikelihood.Window(other, [7]),
        loglikelihood.Window([5, 9], [1]),
        loglikelihood.Window([], []),
    ]
    reads = loglikelihood.shared_reads(windows)
    assert [read.ids for read in reads] == [[5, 6, 7, 8], [5, 9]]
    assert sorted(reads[0].windows) == [0, 1, 2, 3, 4, 5] and reads[1].windows == [6]


def test_packed_and_shared_scores_are_those_of_each_alone(tiny):
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 200, n).tolist() for n in (3, 60, 17, 17, 40, 9)]
    windows = [loglikelihood.Window(ids, [*ids[1:], 5][-k:]) for ids in texts for k in (1, 2, 3)]
    windows += [loglikelihood.Window(texts[1], [answer]) for answer in (7, 8, 9)]
    nats, greedy = loglikelihood.score_windows(tiny.config, tiny.params, windows, batch_size=2)
    for window, value, best in zip(windows, nats, greedy, strict=True):
        table = tiny.log_probs(window.inputs)[-len(window.targets) :]
        alone = sum(row[target] for row, target in zip(table, window.targets, strict=True))
        assert value == pytest.approx(alone, rel=1e-4)
        assert best == all(row.argmax() == t for row, t in zip(table, window.targets, strict=True))


STOPS = [
    # what a model writes, the stops, what is left
    ("yes<|im_end|>\nuser no", ("<|im_end|>",), "yes"),
    ("yes<|im_end|>\nuser no", ("<|im_end|>\nuser",), "yes"),
    ("yes<|im_end|>\nuser no", ("\nuser",), "yes"),
    ("yes\nno", ("no", "\n"), "yes"),
    ("yes <|im_start|>no", ("###",), "yes no"),
    ("yes", ("yes",), ""),
    ("yes", (), "yes"),
]


@pytest.mark.parametrize(("written", "ends", "left"), STOPS)
def test_a_text_ends_before_its_stop_string(tiny, written, ends, left):
    tokenizer = marked(tiny.tokenizer)
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    assert stops.text_before(tokenizer, ids, ends) == left
    found = any(end in written for end in ends)
    assert stops.stopped(tokenizer, ends)([ids, ids[:0]]) == [found, False]


def test_every_end_that_model_and_tokenizer_name_stops_a_text(tiny, monkeypatch):
    tokenizer = marked(tiny.tokenizer)
    end, start = (tokenizer.convert_tokens_to_ids(f"<|im_{x}|>") for x in ("end", "start"))
    own = tokenizer.eos_token_id
    config = replace(tiny.config, vocab_size=len(tokenizer))
    assert stops.stop_ids(config, tokenizer) == (own,)
    assert stops.stop_ids(replace(config, eos_token_id=end), tokenizer) == (own, end)
    several = replace(config, eos_token_id=(end, start))
    assert set(stops.stop_ids(several, tokenizer)) == {own, end, start}
    assert set(stops.stop_ids(config, tokenizer, ["<|im_end|>", "yes", "\n"])) == {own, end}
    seen = []

    def fake(config, params, prompts, *, stop_ids, **_):
        seen.append(stop_ids)
        return [[] for _ in prompts]

    monkeypatch.setattr(harness, "generate", fake)
    model = HarnessModel(several, tiny.params, tokenizer, max_new_tokens=5)
    assert model.generate_until(requests(("a", {"until": ["<|im_end|>"]}))) == [""]
    assert set(seen[0]) == {own, end, start}


def marked(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


def test_special_tokens_follow_one_rule(tiny):
    """The prompt of a generation, a context and a training row begin alike, with one BOS."""
    model = HarnessModel(tiny.config, tiny.params, tiny.tokenizer)
    bos = tiny.tokenizer.bos_token_id
    row = encode(tiny.tokenizer, [Example("say red ", "cat")], 64).ids[0].tolist()
    for context in ("say red ", "<s>say red "):
        window = model._window(context, "cat")
        assert window.inputs == row[:-2] and window.targets == row[-2:-1] != [bos]
        for like_hf in (False, True):
            model.like_hf = like_hf
            assert model._window(context, "cat").inputs[:2] == row[:2] != [bos, bos]
        model.like_hf = False
    alone = encode(tiny.tokenizer, [Example("", "cat")], 64).ids[0].tolist()
    assert model._window("", "cat") == ([bos], alone[1:-1])
