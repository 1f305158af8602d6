"""Chats: only assistant turns are scored, whatever the template."""

import copy

import pytest

from taskpgm.tasks import Example, encode

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# System folded into the first user turn, BOS written by the template, answers stripped.
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no ' + m.role + ' here') }}{% endif %}{% endfor %}"
)
# No header on request and no mark at the end of a turn.
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
# An early answer is written shorter once the chat has gone on, as thinking models do.
FORGETFUL = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}(think)"
    "{% endif %}{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT = (("user", "Say 4"), ("assistant", "4 it is"), ("user", "4 it is?"), ("assistant", "yes 4"))


def scored(tokenizer, template, chat, length=256):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = template
    encoded = encode(tokenizer, [Example("", "", chat)], length)
    if not encoded.ids:
        return None, encoded
    runs, before = [], False
    for token, is_scored in zip(encoded.ids[0], encoded.scored[0], strict=True):
        if is_scored:
            runs = [*runs, [token]] if not before else [*runs[:-1], [*runs[-1], token]]
        before = is_scored
    return [tokenizer.decode(run) for run in runs], encoded


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["4 it is</s>", "yes 4</s>"]),
        (INSTRUCT, ["4 it is</s>", "yes 4</s>"]),
        (PLAIN, ["4 it is", "yes 4</s>"]),
        (FORGETFUL, ["4 it is</s>", "yes 4</s>"]),
    ],
)
def test_only_what_the_assistant_says_is_scored(tokenizer, template, expected):
    runs, encoded = scored(tokenizer, template, CHAT)
    assert [run.strip() for run in runs] == expected
    assert encoded.ids[0][-1] == tokenizer.eos_token_id and encoded.scored[0][-1]
    assert not encoded.scored[0][0]
    assert (encoded.ids[0] == tokenizer.bos_token_id).sum() == (template == INSTRUCT)


def test_what_comes_after_the_last_answer_is_cut_off(tokenizer):
    runs, encoded = scored(tokenizer, CHATML, (*CHAT, ("user", "thanks")))
    assert runs == ["4 it is</s>", "yes 4</s>"]
    assert encoded.ids[0][-1] == tokenizer.eos_token_id


def test_an_answer_that_stands_first_has_context(tokenizer):
    runs, encoded = scored(
        tokenizer, "{% for m in messages %}{{ m.content }}{% endfor %}", (("assistant", "hello"),)
    )
    assert runs == ["hello</s>"] and encoded.ids[0][0] == tokenizer.bos_token_id


def test_a_long_chat_loses_its_beginning_or_is_dropped(tokenizer):
    chat = (("user", "long " * 30), ("assistant", "ok"))
    runs, encoded = scored(tokenizer, INSTRUCT, chat, 24)
    assert [run.strip() for run in runs] == ["ok</s>"] and encoded.truncated == 1
    assert len(encoded.ids[0]) == 24 and encoded.ids[0][0] == tokenizer.bos_token_id
    runs, encoded = scored(tokenizer, INSTRUCT, (("user", "a"), ("assistant", "long " * 30)), 24)
    assert runs is None and encoded.dropped == 1


def test_chats_and_plain_rows_keep_their_places(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = INSTRUCT
    chat, plain = Example("", "", CHAT), Example("a ", "b")
    mixed = encode(tokenizer, [plain, chat, plain], 128)
    assert mixed.index.tolist() == [0, 1, 2]
    assert mixed.ids[0].tolist() == mixed.ids[2].tolist()
    assert mixed.ids[1].tolist() == encode(tokenizer, [chat], 128).ids[0].tolist()


@pytest.mark.parametrize(
    ("template", "chat", "message"),
    [
        (None, CHAT, "the tokenizer has no chat template"),
        (INSTRUCT, (("tool", "x"), *CHAT), "refuses a chat of tool, .*: no tool here"),
        (CHATML, (("user", "a"), ("assistant", " ")), "no assistant turn with text"),
        ("{{ messages[0].content }}", CHAT, "does not keep what was said: '4 it is'"),
    ],
)
def test_a_chat_that_cannot_be_scored_is_refused(tokenizer, template, chat, message):
    with pytest.raises(ValueError, match=message):
        scored(tokenizer, template, chat)
