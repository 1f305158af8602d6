"""The embedded suite: small tasks whose every answer Python's standard library computes.

It needs no download, and it is planted: families of unequal sizes that share a way of asking and a
vocabulary of answers, two pairs of tasks that ask the same in other words, training sizes that
differ by a factor of twenty. So an affinity has families to find, and uniform, size-proportional
and TaskPGM mixtures really differ.

To add a task, add one line to `SUITE`:

    Recipe(name, family, train, draw, prompt, answer)

`draw` makes an input from a random.Random, as the text that stands in the prompt; `prompt` is a
format with one `{}` for it; `answer` computes the response from that text alone, with the standard
library and the same on every Python we support (no locale, no table that a newer Unicode or HTTP
changed). Keep both short, and open the prompt as the family does. The tests check the rest: rows
enough, no leaks.
"""

import calendar
import colorsys
import ipaddress
import json
import mimetypes
import random
import statistics
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from http import HTTPStatus

from taskpgm.tasks.task import Task, join

HELDOUT = 32  # rows of every task


@dataclass(frozen=True)
class Recipe:
    """How one task is made: inputs x = draw(rng), rows prompt.format(x) -> answer(x)."""

    name: str
    family: str
    train: int
    draw: Callable[[random.Random], str]
    prompt: str
    answer: Callable[[str], str]


# Inputs

WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = ("January February March April May June July August September October November "
          "December").split()  # fmt: skip
HUES = "red yellow green cyan blue magenta".split()
JSON_TYPES = {dict: "object", list: "array", str: "string", int: "number", float: "number",
              bool: "boolean", type(None): "null"}  # fmt: skip
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
SCRIPTS = ((0x21, 0x7F), (0xA1, 0xAD), (0xAE, 0x180), (0x391, 0x3A2), (0x3A3, 0x3CA),
           (0x400, 0x460), (0x531, 0x557), (0x561, 0x587), (0x5D0, 0x5EB))  # fmt: skip
STATUSES = (200, 201, 202, 204, 301, 302, 304, 400, 401, 403, 404, 405, 409, 410, 500, 501, 502,
            503)  # fmt: skip
ENDINGS = "css csv gif html jpg json pdf png txt xml zip".split()


def _day(rng: random.Random) -> str:
    first, last = date(1900, 1, 1).toordinal(), date(2099, 12, 31).toordinal()
    return date.fromordinal(rng.randint(first, last)).isoformat()


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.choice((2, 3))))


def _number(rng: random.Random) -> str:
    return str(rng.randrange(16, 4096))


def _character(rng: random.Random) -> str:
    code = rng.choice([code for begin, end in SCRIPTS for code in range(begin, end)])
    return f"{chr(code)} U+{code:04X}"


def _request(rng: random.Random) -> str:
    return f"/{_word(rng)}.{rng.choice(ENDINGS)} {rng.choice(STATUSES)}"


def _address(rng: random.Random) -> str:
    first = rng.choice(
        ("10", "127", "169.254", "172.20", "192.168", "8", "77", "130", "224", "239")
    )
    rest = [str(rng.randrange(1, 255)) for _ in range(3 - first.count("."))]
    return f"{'.'.join([first, *rest])}/{rng.choice((8, 16, 20, 24, 28, 30))}"


def _member(rng: random.Random) -> str:
    number, word = rng.randrange(-99, 100), _word(rng)
    values = (
        {word: number},
        [number, word],
        [],
        word,
        str(number),
        number,
        number / 4,
        number > 0,
        None,
    )
    return json.dumps({_word(rng): rng.choice(values)})[1:-1]


def _numbers(rng: random.Random) -> str:
    return ", ".join(str(rng.randrange(1, 20)) for _ in range(3))


def _colour(rng: random.Random) -> str:
    return f"#{rng.randrange(0x1000000):06x}"


# Answers


def _month_days(day: str) -> str:
    then = date.fromisoformat(day)
    return str(calendar.monthrange(then.year, then.month)[1])


def _weekday(day: str) -> str:
    # Not strftime: that follows the locale of whoever runs this.
    return WEEKDAYS[date.fromisoformat(day).weekday()]


def _script(character: str) -> str:
    script = unicodedata.name(character[0]).split()[0].lower()
    return script if script in ("latin", "greek", "cyrillic", "armenian", "hebrew") else "common"


def _media_type(request: str) -> str:
    # An instance of its own, since the module's functions also read the files of the system.
    return mimetypes.MimeTypes().guess_type(request.split()[0])[0]


def _scope(address: str) -> str:
    ip = ipaddress.ip_interface(address).ip
    scopes = ("loopback", "link_local", "multicast", "private")
    return next((scope for scope in scopes if getattr(ip, f"is_{scope}")), "global").replace(
        "_", "-"
    )


def _type(member: str) -> type:
    return type(next(iter(json.loads("{" + member + "}").values())))


def _integers(numbers: str) -> list[int]:
    return [int(number) for number in numbers.split(", ")]


def _hue(colour: str) -> str:
    hue, _, _ = colorsys.rgb_to_hsv(*(channel / 255 for channel in bytes.fromhex(colour[1:])))
    return HUES[round(hue * 6) % 6]


# The suite

SUITE = (
    Recipe("weekday", "calendar", 900, _day, "Date {}. What weekday is it?", _weekday),
    Recipe("day_of_week", "calendar", 150, _day,
           "Name the day of the week on which {} falls.", _weekday),
    Recipe("month", "calendar", 120, _day, "Date {}. What month is it?",
           lambda day: MONTHS[date.fromisoformat(day).month - 1]),
    Recipe("quarter", "calendar", 60, _day, "Date {}. What quarter is it?",
           lambda day: f"Q{(date.fromisoformat(day).month + 2) // 3}"),
    Recipe("month_days", "calendar", 300, _day, "Date {}. How many days has its month?",
           _month_days),
    Recipe("leap_year", "calendar", 600, _day, "Date {}. Is its year leap?",
           lambda day: "leap" if calendar.isleap(date.fromisoformat(day).year) else "common"),

    Recipe("first_letter", "letters", 1200, _word, "Word {}. First letter?", lambda word: word[0]),
    Recipe("last_letter", "letters", 400, _word, "Word {}. Last letter?", lambda word: word[-1]),
    Recipe("lowest_letter", "letters", 200, _word, "Word {}. Lowest letter?", min),
    Recipe("highest_letter", "letters", 60, _word, "Word {}. Highest letter?", max),

    Recipe("hexadecimal", "numbers", 600, _number, "Number {}. In hexadecimal?",
           lambda n: hex(int(n))),
    Recipe("base_sixteen", "numbers", 120, _number, "Write {} in base sixteen.",
           lambda n: format(int(n), "#x")),
    Recipe("octal", "numbers", 300, _number, "Number {}. In octal?", lambda n: oct(int(n))),
    Recipe("binary", "numbers", 90, _number, "Number {}. In binary?", lambda n: bin(int(n))),

    Recipe("category", "unicode", 320, _character, "Character {}. Category?",
           lambda c: unicodedata.category(c[0])),
    Recipe("bidirectional", "unicode", 80, _character, "Character {}. Direction?",
           lambda c: unicodedata.bidirectional(c[0])),
    Recipe("script", "unicode", 160, _character, "Character {}. Script?", _script),

    Recipe("http_reason", "web", 480, _request, "GET {}. Reason?",
           lambda request: HTTPStatus(int(request.split()[1])).phrase),
    Recipe("media_type", "web", 120, _request, "GET {}. Media type?", _media_type),

    Recipe("ip_scope", "network", 360, _address, "Address {}. Scope?", _scope),
    Recipe("netmask", "network", 90, _address, "Address {}. Mask?",
           lambda address: str(ipaddress.ip_interface(address).netmask)),

    Recipe("json_type", "types", 100, _member, "Member {}. JSON type?",
           lambda member: JSON_TYPES[_type(member)]),
    Recipe("python_type", "types", 450, _member, "Member {}. Python type?",
           lambda member: _type(member).__name__),

    Recipe("sum", "arithmetic", 1000, _numbers, "Numbers {}. Sum?",
           lambda x: str(sum(_integers(x)))),
    Recipe("median", "arithmetic", 240, _numbers, "Numbers {}. Median?",
           lambda x: str(statistics.median(_integers(x)))),

    Recipe("hue", "colour", 240, _colour, "Colour {}. Hue?", _hue),
)  # fmt: skip

# Each pair computes the same, asked in other words and of other inputs.
NEAR_DUPLICATES: tuple[tuple[str, str], ...] = (
    ("weekday", "day_of_week"),
    ("hexadecimal", "base_sixteen"),
)


def stdlib_tasks(seed: int = 0) -> list[Task]:
    """The suite's tasks, in the order of `SUITE`: the same rows for the same seed, on any machine.

    An input of a held-out row of a family is in no training row of that family, so neither a
    prompt nor its answer, in whatever words, leaks from one split into another.
    """
    heldout = {recipe.name: _inputs(recipe, seed, "heldout", HELDOUT, set()) for recipe in SUITE}
    reserved: dict[str, set[str]] = {}
    for recipe in SUITE:
        reserved.setdefault(recipe.family, set()).update(heldout[recipe.name])
    tasks = []
    for recipe in SUITE:
        train = _inputs(recipe, seed, "train", recipe.train, reserved[recipe.family])
        rows = [
            tuple(join(recipe.prompt.format(x), recipe.answer(x)) for x in inputs)
            for inputs in (train, heldout[recipe.name])
        ]
        tasks.append(Task(recipe.name, recipe.family, *rows))
    return tasks


def _inputs(recipe: Recipe, seed: int, split: str, count: int, taken: set[str]) -> list[str]:
    """`count` different inputs outside `taken`. A string seeds the same on every Python."""
    rng = random.Random(f"{seed}/{recipe.name}/{split}")
    inputs: dict[str, None] = {}
    for _ in range(200 * count):
        if len(inputs) == count:
            break
        drawn = recipe.draw(rng)
        if drawn not in taken:
            inputs[drawn] = None
    else:
        raise ValueError(f"task {recipe.name}: draws too few different inputs for {count} rows")
    return list(inputs)
