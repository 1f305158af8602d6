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
    # The template's own BOS, or else the tokenizer's, and never two.
    assert (encoded.ids[0] == tokenizer.bos_token_id).sum() == 1


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


# Templates of several makers, each with its header and its mark.
MARKS = {
    "chatml": ("<|im_start|>{role}\n", "<|im_end|>", "\n"),
    "llama3": ("<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>", ""),
    "gemma": ("<start_of_turn>{role}\n", "<end_of_turn>", "\n"),
    "text": ("### {role}:\n", "</s>", "\n\n"),
}


def template_of(name):
    header, mark, gap = MARKS[name]
    begin, end = header.split("{role}")
    return (
        f"{{% for m in messages %}}{{{{ {begin!r} + m['role'] + {end!r} + m['content'] + {mark!r}"
        f" + {gap!r} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {begin + 'assistant' + end!r} }}}}{{% endif %}}"
    )


@pytest.fixture
def marked(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    special = [mark for _, mark, _ in MARKS.values() if mark != "</s>"] + ["<|im_start|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


@pytest.mark.parametrize("name", MARKS)
@pytest.mark.parametrize(
    "answer",
    [
        "yes",
        "d",
        "s",
        "e",
        "end",
        "<",
        "|",
        "turn",
        "/",
        "assistant",
        "user\n",
        "  x",
        "x  ",
        "\nx\n",
    ],
)
def test_the_mark_is_found_by_place_whatever_the_answer(marked, name, answer):
    chat = (("user", answer), ("assistant", answer), ("user", answer), ("assistant", answer))
    runs, encoded = scored(marked, template_of(name), chat)
    mark = MARKS[name][1]
    end = "" if mark == "</s>" else "</s>"
    assert runs == [answer + mark, answer + mark + end]
    assert encoded.scored[0][-1] and encoded.ids[0][-1] == marked.eos_token_id


@pytest.mark.parametrize("gap", ["", "\n"])
def test_a_mark_at_the_end_of_the_whole_chat_alone_does_not_cost_the_others_theirs(marked, gap):
    """Phi-3's template is of this kind: what stands between turns is nobody's answer."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        f"{{{{ '<|im_end|>' + {gap!r} }}}}"
        "{% endfor %}{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    )
    runs, _ = scored(marked, template, CHAT)
    assert runs == ["4 it is<|im_end|>", f"yes 4<|im_end|>{gap}</s>"]


def test_thoughts_that_the_template_moves_are_scored_as_it_writes_them(marked):
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}{% set parts = m['content'].split('</think>') %}"
        "{% if loop.last and parts | length > 1 %}<think>\n"
        "{{ parts[0].split('<think>')[1] | trim }}\n</think>\n\n{% endif %}"
        "{{ parts[-1] | trim }}{% else %}{{ m['content'] }}{% endif %}"
        "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    thought = "<think>hm</think> so 4"
    runs, _ = scored(marked, template, (("user", "a"), ("assistant", thought)))
    assert runs == ["<think>\nhm\n</think>\n\nso 4<|im_end|></s>"]
    runs, _ = scored(marked, template, (*CHAT[:1], ("assistant", thought), *CHAT[2:]))
    assert runs == ["so 4<|im_end|>", "yes 4<|im_end|></s>"]


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        ("strftime_now('%d %b %Y')", "26 Jul 2024"),
        ("strftime_now('%Y-%m-%d')", "2024-07-26"),
        ("strftime_now('%-d %B, %H:%M')", "26 July, 00:00"),
        ("strftime_now(format='%A')", "Friday"),
    ],
)
def test_the_clock_of_a_template_stands_still_and_is_said(tokenizer, call, shown):
    template = "\n  {% set today = " + call + " %}\nIt is {{ today }}.\n" + CHATML
    _, encoded = scored(tokenizer, template, CHAT)
    text = tokenizer.decode(encoded.ids[0], skip_special_tokens=True)
    assert text.lstrip("\n").startswith(f"It is {shown}.\n<|user|>")
    assert encoded.notes == ("the chat template writes the date: it is always 26 Jul 2024",)
    fixed, encoded = scored(tokenizer, template.replace(call, repr(shown)), CHAT)
    assert tokenizer.decode(encoded.ids[0], skip_special_tokens=True) == text
    assert encoded.notes == ()
