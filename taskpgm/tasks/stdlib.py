"""The embedded suite: small tasks whose answers Python's standard library computes.

It needs no download, and it is redundant as real collections are: 193 of the 316 tasks of the paper
are templates of a few data sets (T0), the same question in other words. Here a skill is a family
of tasks: two skills are asked in a dozen and in six templates, ten in one way. So uniform over
tasks spends 43% of its budget on the scripts of letters, which are soon learnt. What a good mixture
looks like is known: templates of one skill teach each other, tasks of two skills do not, so a skill
needs about as many examples in twelve templates as in one. One skill, hexadecimal, is too hard for
a small model.

(Prompts that begin alike, with answers of different kinds, would not do: an adapter would learn to
give its own kind of answer to the other task's prompts, and tasks of one skill would come out
further apart than tasks of two.)

To add a skill, add one entry to `SUITE`:

    Skill(name, draw, answer, {task: (training rows, template), ...})

`draw` makes an input, a text of one or more words, from a random.Random; the template asks about
it, {0} standing for its first word; `answer(input)` computes the response with the standard
library, the same on every Python we support (no locale, no table that a newer Unicode or HTTP
changed). Keep both short. The tests check the rest: enough rows, and none in two splits.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from taskpgm.tasks import stdlib_skills as skills
from taskpgm.tasks.task import Task, join

HELDOUT = TEST = 32  # rows of every task


@dataclass(frozen=True)
class Skill:
    """Inputs x = draw(rng), asked about in each of the templates, answered by answer(x)."""

    name: str
    draw: Callable[[random.Random], str]
    answer: Callable[[str], str]
    templates: Mapping[str, tuple[int, str]]  # of a task: its training rows and how it asks

    def prompt(self, task: str, x: str) -> str:
        return self.templates[task][1].format(*x.split())


# The suite
SUITE = (
    Skill(
        "script",
        skills.letters,
        skills.script,
        {
            "script_text": (900, "Text {0}. Script?"),
            "script_name": (900, "Name the script of {0}."),
            "script_which": (800, "Which script is {0} in?"),
            "script_sign": (800, "A sign says {0}. In which script?"),
            "script_font": (700, "Font for {0}: script of its letters?"),
            "script_log": (700, "Log entry {0}, script ="),
            "script_read": (600, "Read {0}; give the script."),
            "script_word": (600, "The word {0} is written in"),
            "script_label": (500, "Label {0}. Its script:"),
            "script_spell": (500, "Spell check of {0}, script"),
            "script_alphabet": (400, "Alphabet of {0}?"),
            "script_note": (400, "They wrote {0}, that is in"),
        },
    ),
    Skill(
        "type",
        skills.member,
        skills.type_of,
        {
            "type": (500, "JSON {0} Type?"),
            "type_value": (400, "Value of {0} has type"),
            "type_member": (400, "Member {0}: what type?"),
            "type_parsed": (300, "Parsed {0}, and got a"),
            "type_field": (300, "Which type does {0} hold?"),
            "type_schema": (200, "Schema of {0}, type ="),
        },
    ),
    Skill("sum", skills.numbers, skills.sum_of, {"sum": (1200, "Add {0} and {1}.")}),
    Skill("letter", skills.word, skills.last, {"last_letter": (1000, "Word {0}. Last letter?")}),
    Skill("month", skills.day, skills.month, {"month": (1000, "Date {0}-{1}-{2}. Month?")}),
    Skill(
        "number",
        skills.number(16, 4096),
        skills.hexadecimal,
        {"hexadecimal": (900, "Number {0}. In hexadecimal?")},
    ),
    Skill("larger", skills.pair, skills.larger, {"larger": (800, "{0} or {1}: which is more?")}),
    Skill("http", skills.request, skills.reason, {"reason": (800, "GET {0} gives {1}. Reason?")}),
    Skill(
        "media",
        skills.file_name,
        skills.media_type,
        {"media_type": (600, "URL /img/{0}. Media type?")},
    ),
    Skill("address", skills.address, skills.scope, {"scope": (400, "Address {0}. Scope?")}),
    Skill("colour", skills.colour, skills.hue, {"hue": (400, "Colour {0}. Hue?")}),
    Skill("leap", skills.number(1000, 10000), skills.leap, {"leap": (300, "Year {0}. Leap?")}),
)


def stdlib_tasks(seed: int = 0) -> list[Task]:
    """The suite's tasks, in the order of `SUITE`: the same rows for the same seed, on any
    machine."""
    splits = inputs(seed)
    tasks = []
    for skill in SUITE:
        for name in skill.templates:
            train, heldout, test = (
                tuple(join(skill.prompt(name, x), skill.answer(x)) for x in split)
                for split in splits[name]
            )
            tasks.append(Task(name, skill.name, train, heldout, test))
    return tasks


def inputs(seed: int = 0) -> dict[str, tuple[list[str], list[str], list[str]]]:
    """The inputs behind each task's training, held-out and test rows.

    No input of a skill's held-out or test row is behind another split's row of that skill: the
    question has not been asked there in any wording.
    """
    found = {}
    for skill in SUITE:
        reserved: set[str] = set()
        drawn: dict[str, dict[str, list[str]]] = {}
        for split, count in (("heldout", HELDOUT), ("test", TEST), ("train", 0)):
            drawn[split] = {
                name: _drawn(skill, f"{seed}/{name}/{split}", count or rows, reserved)
                for name, (rows, _) in skill.templates.items()
            }
            reserved = reserved.union(*drawn[split].values())
        for name in skill.templates:
            found[name] = drawn["train"][name], drawn["heldout"][name], drawn["test"][name]
    return found


def _drawn(skill: Skill, seed: str, count: int, taken: set[str]) -> list[str]:
    """`count` different inputs outside `taken`. A string seeds alike on every Python."""
    rng = random.Random(seed)
    drawn: dict[str, None] = {}
    for _ in range(200 * count):
        if len(drawn) == count:
            break
        x = skill.draw(rng)
        if x not in taken:
            drawn[x] = None
    else:
        raise ValueError(f"skill {skill.name}: draws too few different inputs for {count} rows")
    return list(drawn)
