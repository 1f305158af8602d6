"""The embedded suite: small tasks whose answers Python's standard library computes.

It needs no download, and how its tasks relate is known. A family is one question whose input is
written in different ways (a date as 14.03.1987 or as 19870314), so its tasks share the answers and
the rule behind them, and learning one helps with another. Families have unequal sizes, training
sizes differ by a factor of twenty, and two pairs of tasks ask the same in other words. So an
affinity has something to find, and uniform, size-proportional and TaskPGM mixtures really differ.

(Prompts that begin alike, with answers of different kinds, would not do: an adapter would learn to
give its own kind of answer to the other task's prompts, and tasks of one family would come out
further apart than tasks of two.)

To add a task, add one line to `SUITE`:

    Recipe(name, family, train, draw, prompt, answer)

`draw` makes an input x, a text, from a random.Random; `prompt(x)` asks about it; `answer(x)`
computes the response with the standard library, the same on every Python we support (no locale, no
table that a newer Unicode or HTTP changed). Keep both short. The tests check the rest: enough rows,
and none in two splits.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

from taskpgm.tasks import stdlib_skills as skills
from taskpgm.tasks.task import Task, join

HELDOUT = TEST = 32  # rows of every task


@dataclass(frozen=True)
class Recipe:
    """How one task is made: inputs x = draw(rng), rows prompt(x) -> answer(x)."""

    name: str
    family: str
    train: int
    draw: Callable[[random.Random], str]
    prompt: Callable[[str], str]
    answer: Callable[[str], str]


# The suite
SUITE = (
    Recipe(
        "month_short",
        "month",
        900,
        skills.day,
        lambda x: f"Date {x}. Month in short?",
        skills.short,
    ),
    Recipe(
        "month_abbreviated",
        "month",
        300,
        skills.day,
        lambda x: f"Date {x}. Abbreviate its month.",
        skills.short,
    ),
    Recipe(
        "month_dotted",
        "month",
        150,
        skills.day,
        lambda x: f"Born {'.'.join(x.split('-')[::-1])}. Month?",
        skills.month,
    ),
    Recipe(
        "month_compact",
        "month",
        90,
        skills.day,
        lambda x: f"Stamp {x.replace('-', '')}. Month?",
        skills.month,
    ),
    Recipe(
        "month_ordinal",
        "month",
        240,
        skills.day,
        lambda x: f"Day {date.fromisoformat(x):%j} of {x[:4]}. Month?",
        skills.month,
    ),
    Recipe(
        "month_american",
        "month",
        60,
        skills.day,
        lambda x: f"Due {x[5:7]}/{x[8:]}/{x[:4]}. Month?",
        skills.month,
    ),
    Recipe(
        "hexadecimal",
        "number",
        600,
        skills.number(16, 4096),
        lambda x: f"Number {x}. In hexadecimal?",
        skills.hexadecimal,
    ),
    Recipe(
        "base_sixteen",
        "number",
        500,
        skills.number(16, 4096),
        lambda x: f"Number {x}. In base sixteen?",
        skills.hexadecimal,
    ),
    Recipe(
        "octal",
        "number",
        200,
        skills.number(4096, 65536),
        lambda x: f"Octal {int(x):o} as hex?",
        skills.hexadecimal,
    ),
    Recipe(
        "binary",
        "number",
        120,
        skills.number(4096, 65536),
        lambda x: f"Bits {int(x):b} as hex?",
        skills.hexadecimal,
    ),
    Recipe("reason", "http", 480, skills.request, lambda x: f"GET {x}. Reason?", skills.reason),
    Recipe(
        "reason_header",
        "http",
        120,
        skills.request,
        lambda x: f"HTTP/1.1 {x.split()[1]} at {x.split()[0]}. Phrase?",
        skills.reason,
    ),
    Recipe(
        "reason_error",
        "http",
        60,
        skills.request,
        lambda x: f"Server {x.split()[0][1:]} answered {x.split()[1]}. Meaning?",
        skills.reason,
    ),
    Recipe(
        "script", "script", 200, skills.letters(1), lambda x: f"Letter {x}. Script?", skills.script
    ),
    Recipe(
        "script_of_code",
        "script",
        80,
        skills.letters(1),
        lambda x: f"U+{ord(x):04X}. Script?",
        skills.script,
    ),
    Recipe(
        "script_of_text",
        "script",
        400,
        skills.letters(3),
        lambda x: f"Text {x}. Script?",
        skills.script,
    ),
    Recipe(
        "media_type",
        "media",
        400,
        skills.file_name,
        lambda x: f"URL /img/{x}. Media type?",
        skills.media_type,
    ),
    Recipe(
        "media_attached",
        "media",
        80,
        skills.file_name,
        lambda x: f'Attached "{x}". Type?',
        skills.media_type,
    ),
    Recipe("scope", "address", 360, skills.address, lambda x: f"Address {x}. Scope?", skills.scope),
    Recipe(
        "scope_of_host",
        "address",
        90,
        skills.address,
        lambda x: f"http://{x}:80/. Scope?",
        skills.scope,
    ),
    Recipe("json_type", "type", 450, skills.member, lambda x: f"Member {x}. Type?", skills.type_of),
    Recipe(
        "python_type",
        "type",
        100,
        skills.member,
        lambda x: f"{x.split(chr(34))[1]} = {skills.value(x)!r}. Type?",
        skills.type_of,
    ),
    Recipe("sum_of_two", "sum", 1200, skills.numbers(2), lambda x: f"Add {x}.", skills.sum_of),
    Recipe("sum_of_three", "sum", 240, skills.numbers(3), lambda x: f"Add {x}.", skills.sum_of),
    Recipe(
        "last_letter", "letter", 1000, skills.word, lambda x: f"Word {x}. Last letter?", skills.last
    ),
    Recipe(
        "last_of_two", "letter", 150, skills.words, lambda x: f"Phrase {x}. Ends in?", skills.last
    ),
    Recipe("hue", "colour", 240, skills.colour, lambda x: f"Colour {x}. Hue?", skills.hue),
)

# Each pair asks the same about the same kind of input in other words. The two have about equally
# many rows, because a divergence also depends on how long a model was trained: with 300 rows, half
# of hexadecimal's, base_sixteen was nearer to octal (200 rows) on one of two Python versions.
NEAR_DUPLICATES: tuple[tuple[str, str], ...] = (
    ("month_short", "month_abbreviated"),
    ("hexadecimal", "base_sixteen"),
)


def stdlib_tasks(seed: int = 0) -> list[Task]:
    """The suite's tasks, in the order of `SUITE`: the same rows for the same seed, on any
    machine."""
    splits = inputs(seed)
    tasks = []
    for recipe in SUITE:
        train, heldout, test = (
            tuple(join(recipe.prompt(x), recipe.answer(x)) for x in split)
            for split in splits[recipe.name]
        )
        tasks.append(Task(recipe.name, recipe.family, train, heldout, test))
    return tasks


def inputs(seed: int = 0) -> dict[str, tuple[list[str], list[str], list[str]]]:
    """The inputs behind each task's training, held-out and test rows.

    Within a family, no input of a held-out or test row is also the input of a row of another split,
    of any of its tasks: in no wording is the same question asked in two splits.
    """
    heldout = {recipe.name: _drawn(recipe, seed, "heldout", HELDOUT, set()) for recipe in SUITE}
    reserved = _by_family(heldout)
    test = {r.name: _drawn(r, seed, "test", TEST, reserved[r.family]) for r in SUITE}
    for family, taken in _by_family(test).items():
        reserved[family] |= taken
    return {
        r.name: (
            _drawn(r, seed, "train", r.train, reserved[r.family]),
            heldout[r.name],
            test[r.name],
        )
        for r in SUITE
    }


def _by_family(drawn: dict[str, list[str]]) -> dict[str, set[str]]:
    """All inputs of a family's tasks."""
    families: dict[str, set[str]] = {recipe.family: set() for recipe in SUITE}
    for recipe in SUITE:
        families[recipe.family].update(drawn[recipe.name])
    return families


def _drawn(recipe: Recipe, seed: int, split: str, count: int, taken: set[str]) -> list[str]:
    """`count` different inputs that are not in `taken`, the same on every Python version."""
    rng = random.Random(f"{seed}/{recipe.name}/{split}")
    drawn: dict[str, None] = {}
    for _ in range(200 * count):
        if len(drawn) == count:
            break
        x = recipe.draw(rng)
        if x not in taken:
            drawn[x] = None
    else:
        raise ValueError(f"task {recipe.name}: draws too few different inputs for {count} rows")
    return list(drawn)
