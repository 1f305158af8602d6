"""The embedded suite: large and uneven enough, right, and without leaks between splits."""

import calendar
import re
from collections import Counter
from datetime import datetime

import pytest

from taskpgm.tasks import NEAR_DUPLICATES, stdlib_tasks
from taskpgm.tasks.stdlib import HELDOUT, SUITE, TEST, Recipe, _drawn, inputs


def test_it_is_large_and_uneven_enough(suite):
    assert 24 <= len(suite) <= 28 and len({task.name for task in suite}) == len(suite)
    families = Counter(task.family for task in suite)
    assert len(families) >= 8 and len(set(families.values())) >= 5
    sizes = [len(task.train) for task in suite]
    assert max(sizes) >= 10 * min(sizes)
    assert all(len(t.heldout) == HELDOUT and len(t.test) == TEST for t in suite)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(suite):
    assert [task.content_hash for task in stdlib_tasks(0)] == [task.content_hash for task in suite]
    other = stdlib_tasks(1)
    assert all(a.content_hash != b.content_hash for a, b in zip(suite, other, strict=True))
    assert [t.name for t in other] == [t.name for t in suite]


def test_the_rows_are_the_same_on_every_python(suite):
    """A hash of all rows, fixed once: it holds for any Python, locale and Unicode version."""
    from hashlib import sha256

    digest = sha256("".join(task.content_hash for task in suite).encode()).hexdigest()
    assert digest == "9fc85acafc9642c05c5bcdf4e556d1372026e15409fbc91e06daec36168a86e1"


def test_no_prompt_stands_in_two_splits(suite):
    prompts = [row.prompt for task in suite for row in task.train + task.heldout + task.test]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_input_stands_in_two_splits_of_its_family(seed):
    splits = inputs(seed)
    for recipe in SUITE:
        train, heldout, test = map(set, splits[recipe.name])
        assert (len(train), len(heldout), len(test)) == (recipe.train, HELDOUT, TEST)
        for other in SUITE:
            if other.family == recipe.family:
                assert not (heldout | test) & set(splits[other.name][0])
                assert not test & set(splits[other.name][1])
    tasks = {task.name: task for task in stdlib_tasks(seed)}
    for recipe in SUITE:
        rows = tasks[recipe.name].heldout
        assert [row.prompt for row in rows] == [
            recipe.prompt(x) + "\n" for x in splits[recipe.name][1]
        ]


def test_near_duplicates_ask_the_same_in_other_words_of_other_inputs(suite):
    recipes = {recipe.name: recipe for recipe in SUITE}
    splits = inputs(0)
    assert len(NEAR_DUPLICATES) == 2
    for one, two in NEAR_DUPLICATES:
        a, b = recipes[one], recipes[two]
        assert a.family == b.family
        drawn, others = splits[one][0], splits[two][0]
        assert all(a.answer(x) == b.answer(x) and a.prompt(x) != b.prompt(x) for x in drawn)
        assert len(set(drawn) & set(others)) < 0.2 * len(others)


def test_answers_are_right(suite):
    rows = {task.name: task.train + task.heldout for task in suite}

    def answers(name):
        return {row.response for row in rows[name]}

    for row in rows["month_short"] + rows["month_abbreviated"]:
        assert row.response == calendar.month_abbr[int(row.prompt[10:12])]
    for row in rows["month_dotted"]:
        assert row.response == calendar.month_name[int(row.prompt.split(".")[1])]
    for row in rows["month_ordinal"]:
        day, year = row.prompt.split()[1], row.prompt.split()[3].strip(".")
        assert f"{datetime.strptime(day + year, '%j%Y'):%B}" == row.response
    for name, base in (("hexadecimal", 10), ("base_sixteen", 10), ("octal", 8), ("binary", 2)):
        for row in rows[name]:
            assert int(row.response, 16) == int(row.prompt.split()[1].strip("."), base)
    for row in rows["sum_of_two"] + rows["sum_of_three"]:
        assert sum(map(int, re.findall(r"\d+", row.prompt))) == int(row.response) < 100
    for row in rows["last_of_two"]:
        assert row.prompt.split(".")[0].endswith(row.response)
    assert answers("month_american") == set(calendar.month_name[1:])
    assert answers("reason") >= answers("reason_header") > {"Not Found", "OK", "Bad Gateway"}
    assert answers("media_type") > {"text/html", "image/png"}
    assert answers("scope") == {"private", "global", "loopback", "link_local", "multicast"}
    assert answers("script_of_code") == {"Latin", "Greek", "Cyrillic", "Armenian", "Hebrew"}
    assert answers("json_type") == {"dict", "list", "str", "int", "float", "bool", "NoneType"}
    assert answers("hue") == {"red", "yellow", "green", "cyan", "blue", "magenta"}


def test_a_family_shares_its_answers(suite):
    """Most of what a task answers, some other task of its family answers too: what makes it one."""
    for task in suite:
        kin = [other for other in suite if other.family == task.family and other is not task]
        seen = {row.response for other in kin for row in other.train}
        if kin and task.family != "number":
            shared = sum(row.response in seen for row in task.heldout)
            assert shared >= 0.75 * len(task.heldout), task.name


def test_a_label_is_never_the_whole_answer(suite):
    """Exact match means something: no task is won by always saying the same."""
    for task in suite:
        commonest = Counter(row.response for row in task.heldout).most_common(1)[0][1]
        assert commonest <= 0.85 * len(task.heldout), task.name


def test_rows_are_short(suite, tokenizer):
    lengths = [
        len(tokenizer(row.prompt + row.response)["input_ids"])
        for task in suite
        for row in task.heldout
    ]
    assert sum(lengths) / len(lengths) < 32 and max(lengths) < 64


def test_a_recipe_that_draws_too_little_is_refused():
    recipe = Recipe("coin", "games", 3, lambda rng: rng.choice("ht"), str, str)
    with pytest.raises(ValueError, match="task coin: draws too few different inputs for 3 rows"):
        _drawn(recipe, 0, "train", 3, set())
