"""The embedded suite: redundant as it is meant to be, right, and without leaks between splits."""

import calendar
import re
from collections import Counter

import pytest

from taskpgm.tasks import load_tasks
from taskpgm.tasks.stdlib import HELDOUT, SUITE, TEST, Skill, _drawn, inputs

SCRIPTS = {
    "Latin": "[A-Za-zÀ-ÖØ-öø-ÿ]",
    "Greek": "[Α-Ωα-ω]",
    "Cyrillic": "[Ѐ-џ]",
    "Armenian": "[Ա-Ֆա-և]",
    "Hebrew": "[א-ת]",
}


def test_most_tasks_are_templates_of_two_skills_and_most_skills_have_one(suite):
    assert 27 <= len(suite) <= 30 and len({task.name for task in suite}) == len(suite)
    sizes = Counter(task.family for task in suite)
    assert len(sizes) == len(SUITE) >= 10
    (_, most), (_, second), *others = sizes.most_common()
    assert most == 12 and second >= 6 and all(count == 1 for _, count in others)
    assert 0.6 < (most + second) / len(suite) < 0.7  # as the templates of T0 in the paper's 316
    rows = [len(task.train) for task in suite]
    assert max(rows) >= 5 * min(rows)
    assert all(len(t.heldout) == HELDOUT and len(t.test) == TEST for t in suite)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(suite):
    by_name = load_tasks("stdlib", seed=0)
    assert [task.content_hash for task in by_name] == [task.content_hash for task in suite]
    other = load_tasks("stdlib", seed=1)
    assert all(a.content_hash != b.content_hash for a, b in zip(suite, other, strict=True))
    assert [t.name for t in other] == [t.name for t in suite]


def test_the_rows_are_the_same_on_every_python(suite):
    """A hash of all rows, fixed once: it holds for any Python, locale and Unicode version."""
    from hashlib import sha256

    digest = sha256("".join(task.content_hash for task in suite).encode()).hexdigest()
    assert digest == "433e364e57244e4a0529b738015fcf853279844359c739640ed8768656f81ce5"


def test_no_prompt_stands_in_two_splits(suite):
    prompts = [row.prompt for task in suite for row in task.train + task.heldout + task.test]
    assert len(set(prompts)) == len(prompts)


def test_no_input_stands_in_two_splits_of_its_skill(suite):
    splits = inputs(0)
    tasks = {task.name: task for task in suite}
    for skill in SUITE:
        for name, (rows, _) in skill.templates.items():
            train, heldout, test = map(set, splits[name])
            assert (len(train), len(heldout), len(test)) == (rows, HELDOUT, TEST)
            for other in skill.templates:
                assert not (heldout | test) & set(splits[other][0])
                assert not test & set(splits[other][1])
            asked = [skill.prompt(name, x) + "\n" for x in splits[name][1]]
            assert [row.prompt for row in tasks[name].heldout] == asked


def test_templates_of_a_skill_ask_the_same_in_other_words_of_other_inputs():
    splits = inputs(0)
    for skill in SUITE:
        names = list(skill.templates)
        x = splits[names[0]][1][0]
        assert len({skill.prompt(name, x) for name in names}) == len(names)
        for name in names:
            assert all(word in skill.prompt(name, x) for word in x.split())
        for one, other in zip(names, names[1:], strict=False):
            drawn, others = set(splits[one][0]), set(splits[other][0])
            assert len(drawn & others) < 0.2 * min(len(drawn), len(others))


def test_answers_are_right(suite):
    rows = {task.name: task.train + task.heldout + task.test for task in suite}

    def answers(name):
        return {row.response for row in rows[name]}

    scripts = [name for name in rows if name.startswith("script_")]
    types = [name for name in rows if name.startswith("type")]
    for name in scripts:
        assert answers(name) == {"Latin", "Greek", "Cyrillic", "Armenian", "Hebrew"}
        for row in rows[name]:
            assert re.search(SCRIPTS[row.response] + "{3}", row.prompt)
    for name in types:
        assert answers(name) == {"dict", "list", "str", "int", "float", "bool", "NoneType"}
    assert (len(scripts), len(types)) == (12, 6)
    for row in rows["month"]:
        assert row.response == calendar.month_name[int(row.prompt.split("-")[1])]
    for row in rows["hexadecimal"]:
        assert int(row.response, 16) == int(row.prompt.split()[1].strip("."))
    for row in rows["sum"]:
        assert sum(map(int, re.findall(r"\d+", row.prompt))) == int(row.response) < 100
    for row in rows["larger"]:
        assert max(map(int, re.findall(r"\d+", row.prompt))) == int(row.response)
    for row in rows["last_letter"]:
        assert row.prompt.split(".")[0].endswith(row.response)
    for row in rows["leap"]:
        year = int(row.prompt.split()[1].strip("."))
        assert row.response == ("Yes" if year % 4 == 0 and (year % 100 or not year % 400) else "No")
    assert answers("month") == set(calendar.month_name[1:])
    assert answers("reason") > {"Not Found", "OK", "Bad Gateway"}
    assert answers("media_type") > {"text/html", "image/png"}
    assert answers("scope") == {"private", "global", "loopback", "link_local", "multicast"}
    assert answers("hue") == {"red", "yellow", "green", "cyan", "blue", "magenta"}


def test_a_label_is_never_the_whole_answer(suite):
    """Exact match means something: no task is solved by always giving the same answer."""
    for task in suite:
        commonest = Counter(row.response for row in task.heldout).most_common(1)[0][1]
        assert commonest <= 0.85 * len(task.heldout), task.name


def test_rows_are_short(suite, tokenizer):
    lengths = [
        len(tokenizer(row.prompt + row.response)["input_ids"])
        for task in suite
        for row in task.heldout
    ]
    assert sum(lengths) / len(lengths) < 34 and max(lengths) < 64


def test_a_skill_that_draws_too_little_is_refused():
    skill = Skill("games", lambda rng: rng.choice("ht"), str, {"coin": (3, "{0}")})
    with pytest.raises(ValueError, match="skill games: draws too few different inputs for 3 rows"):
        _drawn(skill, "0/coin/train", 3, set())
