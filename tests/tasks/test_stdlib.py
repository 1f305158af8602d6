"""The embedded suite: large and uneven enough, right, and without leaks between splits."""

import calendar
import unicodedata
from collections import Counter
from datetime import date

import pytest

from taskpgm.tasks import NEAR_DUPLICATES, stdlib_tasks
from taskpgm.tasks.stdlib import HELDOUT, SUITE, Recipe, _inputs


def test_it_is_large_and_uneven_enough(suite):
    assert 24 <= len(suite) <= 28 and len({task.name for task in suite}) == len(suite)
    families = Counter(task.family for task in suite)
    assert len(families) >= 8 and len(set(families.values())) >= 5
    sizes = [len(task.train) for task in suite]
    assert max(sizes) >= 10 * min(sizes)
    assert all(len(task.heldout) == HELDOUT for task in suite)


def test_the_same_seed_gives_the_same_rows_and_another_seed_others(suite):
    assert [task.content_hash for task in stdlib_tasks(0)] == [task.content_hash for task in suite]
    other = stdlib_tasks(1)
    assert all(a.content_hash != b.content_hash for a, b in zip(suite, other, strict=True))
    assert [t.name for t in other] == [t.name for t in suite]


def test_the_rows_are_the_same_on_every_python(suite):
    """A hash of all rows, fixed once: it holds for any Python, locale and Unicode version."""
    from hashlib import sha256

    digest = sha256("".join(task.content_hash for task in suite).encode()).hexdigest()
    assert digest == "8709b9ce80e070e2b14b1fa2a545fb17a9759397ee06b0c0be2eb65dc7dc518f"


def test_no_prompt_stands_in_two_splits(suite):
    prompts = [row.prompt for task in suite for row in task.train + task.heldout]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_input_of_a_heldout_row_is_trained_on_in_its_family(seed):
    recipes = {recipe.name: recipe for recipe in SUITE}

    def inputs(task, rows):
        before, after = recipes[task.name].prompt.split("{}")
        return {row.prompt.strip().removeprefix(before).removesuffix(after) for row in rows}

    tasks = stdlib_tasks(seed)
    for task in tasks:
        for other in tasks:
            if other.family == task.family:
                assert not inputs(task, task.heldout) & inputs(other, other.train)


def test_near_duplicates_ask_the_same_in_other_words_of_other_inputs(suite):
    recipes = {recipe.name: recipe for recipe in SUITE}
    tasks = {task.name: task for task in suite}
    assert len(NEAR_DUPLICATES) == 2
    for one, two in NEAR_DUPLICATES:
        assert tasks[one].family == tasks[two].family
        assert recipes[one].prompt != recipes[two].prompt
        before, after = recipes[one].prompt.split("{}")
        for row in tasks[one].heldout:
            drawn = row.prompt.strip().removeprefix(before).removesuffix(after)
            assert recipes[two].answer(drawn) == row.response


def test_answers_are_right(suite):
    rows = {task.name: task.train + task.heldout for task in suite}
    for row in rows["weekday"]:
        year, month, day = map(int, row.prompt[5:15].split("-"))
        names = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
        assert names.index(row.response) == calendar.weekday(year, month, day)
    for row in rows["leap_year"]:
        assert (row.response == "leap") == (date.fromisoformat(row.prompt[5:15]).year % 4 == 0
                                            and row.prompt[5:9] != "1900")  # fmt: skip
    for name in ("hexadecimal", "octal", "binary"):
        for row in rows[name]:
            assert int(row.response, 0) == int(row.prompt.split()[1].strip("."))
    for row in rows["category"]:
        assert row.response == unicodedata.category(row.prompt.split()[1])
    for row in rows["netmask"]:
        bits = int(row.prompt.split("/")[1].split(".")[0])
        assert sum(int(part).bit_count() for part in row.response.split(".")) == bits
    assert {row.response for row in rows["http_reason"]} > {"Not Found", "OK", "Bad Gateway"}
    assert {row.response for row in rows["media_type"]} > {"text/html", "image/png"}
    assert {row.response for row in rows["json_type"]} == {
        "object", "array", "string", "number", "boolean", "null"}  # fmt: skip
    assert {row.response for row in rows["ip_scope"]} == {
        "private", "global", "loopback", "link-local", "multicast"}  # fmt: skip


def test_a_label_is_never_the_whole_answer(suite):
    """Exact match means something: no task is won by always saying the same."""
    for task in suite:
        commonest = Counter(row.response for row in task.heldout).most_common(1)[0][1]
        assert commonest <= 0.85 * len(task.heldout), task.name


def test_rows_are_short(suite, tokenizer):
    lengths = [len(tokenizer(row.prompt + row.response)["input_ids"]) for task in suite
               for row in task.heldout]  # fmt: skip
    assert sum(lengths) / len(lengths) < 32 and max(lengths) < 64


def test_a_recipe_that_draws_too_little_is_refused():
    recipe = Recipe("coin", "games", 3, lambda rng: rng.choice("ht"), "Coin {}?", str)
    with pytest.raises(ValueError, match="task coin: draws too few different inputs for 3 rows"):
        _inputs(recipe, 0, "train", 3, set())
