"""The embedded suite: small tasks whose every answer Python's standard library computes.

It needs no download, and it is planted. A family is one question whose input is written in
different ways (a date as 14.03.1987 or as 19870314), so its tasks share the answers and the rule
behind them, and learning one helps with another. Families have unequal sizes, training sizes
differ by a factor of twenty, and two pairs of tasks ask the same in other words. So an affinity
has something to find, and uniform, size-proportional and TaskPGM mixtures really differ.

(Tasks that open alike and are answered in different words would not do: an adapter then learns to
give its own kind of answer to the other's prompts, and families come out further apart than
strangers.)

To add a task, add one line to `SUITE`:

    Recipe(name, family, train, draw, prompt, answer)

`draw` makes an input x, a text, from a random.Random; `prompt(x)` asks about it; `answer(x)`
computes the response with the standard library, the same on every Python we support (no locale, no
table that a newer Unicode or HTTP changed). Keep both short. The tests check the rest: rows
enough, no leaks.
"""

import colorsys
import ipaddress
import json
import mimetypes
import random
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from http import HTTPStatus

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


# Inputs

CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
SCRIPTS = (
    (0x41, 0x5B),
    (0x61, 0x7B),
    (0xC0, 0xD7),
    (0xD8, 0xF7),
    (0x391, 0x3A2),
    (0x3B1, 0x3CA),
    (0x400, 0x460),
    (0x531, 0x557),
    (0x561, 0x587),
    (0x5D0, 0x5EB),
)
STATUSES = (
    200,
    201,
    202,
    204,
    301,
    302,
    304,
    400,
    401,
    403,
    404,
    405,
    409,
    410,
    500,
    501,
    502,
    503,
)
ENDINGS = "css csv gif html jpg json pdf png txt xml zip".split()
NETWORKS = ("10", "127", "169.254", "172.20", "192.168", "8", "77", "130", "224", "239")


def _day(rng: random.Random) -> str:
    first, last = date(1900, 1, 1).toordinal(), date(2099, 12, 31).toordinal()
    return date.fromordinal(rng.randint(first, last)).isoformat()


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.choice((2, 3))))


def _words(rng: random.Random) -> str:
    return f"{_word(rng)} {_word(rng)}"


def _number(begin: int, end: int) -> Callable[[random.Random], str]:
    return lambda rng: str(rng.randrange(begin, end))


def _letters(count: int) -> Callable[[random.Random], str]:
    """`count` letters of one alphabet."""

    def draw(rng: random.Random) -> str:
        begin, end = rng.choice(SCRIPTS)
        return "".join(chr(rng.randrange(begin, end)) for _ in range(count))

    return draw


def _request(rng: random.Random) -> str:
    return f"/{_word(rng)} {rng.choice(STATUSES)}"


def _file(rng: random.Random) -> str:
    return f"{_word(rng)}.{rng.choice(ENDINGS)}"


def _address(rng: random.Random) -> str:
    network = rng.choice(NETWORKS).split(".")
    return ".".join(network + [str(rng.randrange(1, 255)) for _ in range(4 - len(network))])


def _member(rng: random.Random) -> str:
    """A name and a value in JSON."""
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


def _numbers(count: int) -> Callable[[random.Random], str]:
    """`count` numbers whose sum is below 100."""
    return lambda rng: " ".join(str(rng.randrange(1, 100 // count)) for _ in range(count))


def _colour(rng: random.Random) -> str:
    return f"#{rng.randrange(0x1000000):06x}"


# Answers

# Neither names nor strftime of the library: they follow the locale of whoever runs this.
MONTHS = (
    "January February March April May June July August September October November December"
).split()
HUES = "red yellow green cyan blue magenta".split()


def _month(day: str) -> str:
    return MONTHS[date.fromisoformat(day).month - 1]


def _short(day: str) -> str:
    return date.fromisoformat(day).ctime()[4:7]  # in English, whatever the locale


def _hexadecimal(number: str) -> str:
    return hex(int(number))


def _reason(request: str) -> str:
    return HTTPStatus(int(request.split()[1])).phrase


def _script(letters: str) -> str:
    return unicodedata.name(letters[0]).split()[0].capitalize()


def _media_type(file: str) -> str:
    # An instance of its own, since the module's functions also read the files of the system.
    return str(mimetypes.MimeTypes().guess_type(file)[0])


def _scope(address: str) -> str:
    ip = ipaddress.ip_address(address)
    scopes = ("loopback", "link_local", "multicast", "private")
    return next((scope for scope in scopes if getattr(ip, f"is_{scope}")), "global")


def _type(member: str) -> str:
    return type(_value(member)).__name__


def _value(member: str) -> object:
    return next(iter(json.loads("{" + member + "}").values()))


def _sum(numbers: str) -> str:
    return str(sum(map(int, numbers.split())))


def _last(word: str) -> str:
    return word[-1]


def _hue(colour: str) -> str:
    hue, _, _ = colorsys.rgb_to_hsv(*(channel / 255 for channel in bytes.fromhex(colour[1:])))
    return HUES[round(hue * 6) % 6]


# The suite

SUITE = (
    Recipe("month_short", "month", 900, _day, lambda x: f"Date {x}. Month in short?", _short),
    Recipe(
        "month_abbreviated",
        "month",
        300,
        _day,
        lambda x: f"Date {x}. Abbreviate its month.",
        _short,
    ),
    Recipe(
        "month_dotted",
        "month",
        150,
        _day,
        lambda x: f"Born {'.'.join(x.split('-')[::-1])}. Month?",
        _month,
    ),
    Recipe(
        "month_compact", "month", 90, _day, lambda x: f"Stamp {x.replace('-', '')}. Month?", _month
    ),
    Recipe(
        "month_ordinal",
        "month",
        240,
        _day,
        lambda x: f"Day {date.fromisoformat(x):%j} of {x[:4]}. Month?",
        _month,
    ),
    Recipe(
        "month_american",
        "month",
        60,
        _day,
        lambda x: f"Due {x[5:7]}/{x[8:]}/{x[:4]}. Month?",
        _month,
    ),
    Recipe(
        "hexadecimal",
        "number",
        600,
        _number(16, 4096),
        lambda x: f"Number {x}. In hexadecimal?",
        _hexadecimal,
    ),
    Recipe(
        "base_sixteen",
        "number",
        500,
        _number(16, 4096),
        lambda x: f"Number {x}. In base sixteen?",
        _hexadecimal,
    ),
    Recipe(
        "octal",
        "number",
        200,
        _number(4096, 65536),
        lambda x: f"Octal {int(x):o} as hex?",
        _hexadecimal,
    ),
    Recipe(
        "binary",
        "number",
        120,
        _number(4096, 65536),
        lambda x: f"Bits {int(x):b} as hex?",
        _hexadecimal,
    ),
    Recipe("reason", "http", 480, _request, lambda x: f"GET {x}. Reason?", _reason),
    Recipe(
        "reason_header",
        "http",
        120,
        _request,
        lambda x: f"HTTP/1.1 {x.split()[1]} at {x.split()[0]}. Phrase?",
        _reason,
    ),
    Recipe(
        "reason_error",
        "http",
        60,
        _request,
        lambda x: f"Server {x.split()[0][1:]} answered {x.split()[1]}. Meaning?",
        _reason,
    ),
    Recipe("script", "script", 200, _letters(1), lambda x: f"Letter {x}. Script?", _script),
    Recipe(
        "script_of_code", "script", 80, _letters(1), lambda x: f"U+{ord(x):04X}. Script?", _script
    ),
    Recipe("script_of_text", "script", 400, _letters(3), lambda x: f"Text {x}. Script?", _script),
    Recipe("media_type", "media", 400, _file, lambda x: f"URL /img/{x}. Media type?", _media_type),
    Recipe("media_attached", "media", 80, _file, lambda x: f'Attached "{x}". Type?', _media_type),
    Recipe("scope", "address", 360, _address, lambda x: f"Address {x}. Scope?", _scope),
    Recipe("scope_of_host", "address", 90, _address, lambda x: f"http://{x}:80/. Scope?", _scope),
    Recipe("json_type", "type", 450, _member, lambda x: f"Member {x}. Type?", _type),
    Recipe(
        "python_type",
        "type",
        100,
        _member,
        lambda x: f"{x.split(chr(34))[1]} = {_value(x)!r}. Type?",
        _type,
    ),
    Recipe("sum_of_two", "sum", 1200, _numbers(2), lambda x: f"Add {x}.", _sum),
    Recipe("sum_of_three", "sum", 240, _numbers(3), lambda x: f"Add {x}.", _sum),
    Recipe("last_letter", "letter", 1000, _word, lambda x: f"Word {x}. Last letter?", _last),
    Recipe("last_of_two", "letter", 150, _words, lambda x: f"Phrase {x}. Ends in?", _last),
    Recipe("hue", "colour", 240, _colour, lambda x: f"Colour {x}. Hue?", _hue),
)

# Each pair asks the same of the same kind of input, in other words, and has about as many rows: a
# divergence also sees for how long a model was trained (base_sixteen with 300 rows, half of
# hexadecimal's, was nearer to octal with 200 on one of two Python versions).
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

    No input of a family's held-out or test row is behind another split's row of that family: the
    question has not been asked there in any wording.
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
    """`count` different inputs outside `taken`. A string seeds alike on every Python."""
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
