"""Loss and exact match against the plainest way to compute them."""

import jax
import numpy as np
import pytest

from taskpgm.evaluation import aggregate, answers_cut_off, evaluate, samples, task_losses
from taskpgm.evaluation import measure as module
from taskpgm.models import LoraConfig, init_lora
from taskpgm.tasks import Example, Task, encode, pack


def plain_loss(tiny, task):
    """One example at a time, whole logits, no packing."""
    nats, tokens = 0.0, 0
    encoded = encode(tiny.tokenizer, task.test, tiny.length)
    for ids, scored in zip(encoded.ids, encoded.scored, strict=True):
        log_probs = tiny.log_probs(ids)
        for at in np.flatnonzero(scored):
            nats -= log_probs[at - 1, ids[at]]
            tokens += 1
    return nats / tokens, tokens


def measure(tiny, **options):
    options = {"batch_size": 4, "max_new_tokens": 6} | options
    return evaluate(tiny.config, tiny.params, tiny.tokenizer, tiny.tasks, tiny.rows, **options)


def test_loss_is_that_of_single_unpacked_examples(tiny):
    measured = task_losses(tiny.config, tiny.params, tiny.tasks, tiny.rows, batch_size=2)
    for task in tiny.tasks:
        loss, tokens = plain_loss(tiny, task)
        assert measured[task.name]["loss"] == pytest.approx(loss, rel=1e-5)
        assert measured[task.name]["tokens"] == tokens
        assert measured[task.name]["examples"] == len(task.test)


def test_all_tasks_share_one_program(tiny):
    from taskpgm.models import scoring

    task_losses(tiny.config, tiny.params, tiny.tasks, tiny.rows, batch_size=3)
    before = scoring.target_log_probs._cache_size()
    task_losses(tiny.config, tiny.params, tiny.tasks[::-1], tiny.rows[::-1], batch_size=3)
    assert scoring.target_log_probs._cache_size() == before


@pytest.mark.slow
def test_greedy_answers_do_not_depend_on_the_batch(tiny):
    one, four = measure(tiny, batch_size=1), measure(tiny, batch_size=4)
    for task in tiny.tasks:
        assert one[task.name]["predictions"] == four[task.name]["predictions"]
        assert one[task.name]["loss"] == pytest.approx(four[task.name]["loss"], rel=1e-6)
    assert measure(tiny) == measure(tiny)


def test_exact_match_counts_answers_that_equal_the_response(tiny, monkeypatch):
    stop = tiny.tokenizer.eos_token_id

    def right_half_of_the_time(config, params, prompts, *, stop_ids, **_):
        assert stop in stop_ids
        outputs = []
        for prompt in prompts:
            word = tiny.tokenizer.decode(prompt, skip_special_tokens=True).split()[1]
            text = f" {word}. " if word in ("red", "green", "cat") else "wrong"
            outputs.append(tiny.tokenizer(text, add_special_tokens=False)["input_ids"])
        return outputs

    monkeypatch.setattr(module, "generate", right_half_of_the_time)
    measured = measure(tiny)
    assert measured["first"]["exact_match"] == pytest.approx(2 / 5)  # red green blue one two
    assert measured["second"]["exact_match"] == pytest.approx(2 / 9)
    limited = measure(tiny, exact_match_examples=2)
    assert limited["first"]["exact_match"] == 1.0
    assert limited["first"]["generated"] == 2
    assert limited["first"]["loss"] == measured["first"]["loss"]


def test_without_generation_there_is_no_exact_match(tiny):
    measured = measure(tiny, exact_match_examples=0)
    assert measured["first"]["exact_match"] is None
    assert measured["first"]["predictions"] == []
    averages = aggregate(measured, {task.name: task.family for task in tiny.tasks})
    assert averages["mean"]["exact_match"] is None


def test_an_adapter_is_measured_as_one(tiny):
    from dataclasses import replace

    config = replace(tiny.config, lora=LoraConfig(rank=2, targets=("q_proj", "v_proj")))
    fresh = init_lora(config, jax.random.key(1))
    moved = jax.tree.map(lambda x: x + 0.1, fresh)
    plain = task_losses(tiny.config, tiny.params, tiny.tasks, tiny.rows, batch_size=4)
    zero, other = (
        task_losses(config, tiny.params, tiny.tasks, tiny.rows, lora=lora, batch_size=4)
        for lora in (fresh, moved)
    )
    assert zero["first"]["loss"] == pytest.approx(plain["first"]["loss"], rel=1e-6)
    assert other["first"]["loss"] != pytest.approx(plain["first"]["loss"], rel=1e-4)


def test_the_prompt_is_what_stands_before_the_last_answer(tiny):
    scored = np.array([False, True, True, False, False, True, True])
    assert module.last_response(scored) == 5
    chat = Example("", "", (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")))
    assert module.asked(chat) == ("user: a\nassistant: b\nuser: c", "d")


def test_prompts_leave_room_for_the_answer(tiny):
    with pytest.raises(ValueError, match="max_new_tokens=64 leaves no room"):
        measure(tiny, max_new_tokens=64)
    prompts = module._prompts(tiny.config, tiny.tokenizer, tiny.tasks, tiny.rows, 60, None)
    assert max(len(prompt.ids) for prompt in prompts) <= 4


def test_rows_must_belong_to_the_tasks(tiny):
    with pytest.raises(ValueError, match="2 sets of rows for 3 tasks"):
        task_losses(tiny.config, tiny.params, tiny.tasks, tiny.rows[:2], batch_size=4)
    nothing = pack(encode(tiny.tokenizer, (), tiny.length), tiny.length)
    with pytest.raises(ValueError, match="'third': no token"):
        task_losses(tiny.config, tiny.params, tiny.tasks, [*tiny.rows[:2], nothing], batch_size=4)


def test_averages_over_tasks_and_over_families():
    per_task = {
        "a": {"loss": 1.0, "exact_match": 0.0, "predictions": ["x"]},
        "b": {"loss": 3.0, "exact_match": 1.0, "predictions": ["x"]},
        "c": {"loss": 5.0, "exact_match": 0.5, "predictions": ["x"]},
    }
    result = aggregate(per_task, {"a": "f", "b": "f", "c": "g"})
    assert result["mean"] == {"loss": 3.0, "exact_match": 0.5}
    assert result["families"]["f"] == {"loss": 2.0, "exact_match": 0.5, "tasks": 2}
    assert result["family_mean"] == {"loss": 3.5, "exact_match": 0.5}
    assert "predictions" not in result["tasks"]["a"]


def test_samples_are_those_that_every_run_answered():
    examples = tuple(Example(f"p{i}", f"r{i}") for i in range(3))
    task = Task("t", "f", examples, (), examples)
    runs = {"a": {"t": {"predictions": [None, "x", "y"]}}, "b": {"t": {"predictions": ["u", "v"]}}}
    assert samples([task], runs, per_task=2) == [
        {
            "task": "t",
            "family": "f",
            "prompt": "p1",
            "response": "r1",
            "predictions": {"a": "x", "b": "v"},
        }
    ]
    assert samples([task], {}) == []


def test_answers_longer_than_what_is_generated_are_said(tiny):
    def task(name, answers):
        test = tuple(Example(f"say {i} ", answer) for i, answer in enumerate(answers))
        return Task(name, "f", test, (), test)

    long = "red green blue one two three"
    tasks = [task("short", ["red"] * 5 + [long]), task("long", [long] * 3 + ["red"])]
    (line,) = answers_cut_off(tiny.tokenizer, tasks, 4)
    assert line.startswith("long: 3 of 4 test answers are longer than evaluation.max_new_tokens=4")
    assert answers_cut_off(tiny.tokenizer, tasks, 64) == []
    # A chat's answer counts too, and the end that has to be written with it.
    chat = Example("", "", (("user", "a"), ("assistant", "red")))
    size = len(tiny.tokenizer("red", add_special_tokens=False)["input_ids"])
    said = [
        answers_cut_off(tiny.tokenizer, [Task("c", "f", (), (), (chat,))], n)
        for n in (size, size + 1)
    ]
    assert [len(lines) for lines in said] == [1, 0]
