"""Inputs and answers of the embedded suite: what is drawn, and what Python's library computes."""

import calendar
import colorsys
import ipaddress
import json
import mimetypes
import random
import unicodedata
from collections.abc import Callable
from datetime import date
from http import HTTPStatus

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


def day(rng: random.Random) -> str:
    first, last = date(1900, 1, 1).toordinal(), date(2099, 12, 31).toordinal()
    return date.fromordinal(rng.randint(first, last)).isoformat().replace("-", " ")


def word(rng: random.Random) -> str:
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(rng.choice((2, 3))))


def number(begin: int, end: int) -> Callable[[random.Random], str]:
    return lambda rng: str(rng.randrange(begin, end))


def letters(rng: random.Random) -> str:
    """Three letters of one alphabet."""
    begin, end = rng.choice(SCRIPTS)
    return "".join(chr(rng.randrange(begin, end)) for _ in range(3))


def request(rng: random.Random) -> str:
    return f"/{word(rng)} {rng.choice(STATUSES)}"


def file_name(rng: random.Random) -> str:
    return f"{word(rng)}.{rng.choice(ENDINGS)}"


def address(rng: random.Random) -> str:
    network = rng.choice(NETWORKS).split(".")
    return ".".join(network + [str(rng.randrange(1, 255)) for _ in range(4 - len(network))])


def member(rng: random.Random) -> str:
    """A name and a value in JSON, as one word."""
    number, text = rng.randrange(-99, 100), word(rng)
    values = (
        {text: number},
        [number, text],
        [],
        text,
        str(number),
        number,
        number / 4,
        number > 0,
        None,
    )
    return json.dumps({word(rng): rng.choice(values)}, separators=(",", ":"))[1:-1]


def numbers(rng: random.Random) -> str:
    """Two numbers whose sum is below 100."""
    return f"{rng.randrange(1, 50)} {rng.randrange(1, 50)}"


def pair(rng: random.Random) -> str:
    """Two different numbers of two digits."""
    return "{} {}".format(*rng.sample(range(10, 100), 2))


def colour(rng: random.Random) -> str:
    return f"#{rng.randrange(0x1000000):06x}"


# Answers

# Neither names nor strftime of the library: they follow the locale of whoever runs this.
MONTHS = (
    "January February March April May June July August September October November December"
).split()
HUES = "red yellow green cyan blue magenta".split()


def month(day: str) -> str:
    return MONTHS[date.fromisoformat(day.replace(" ", "-")).month - 1]


def hexadecimal(number: str) -> str:
    return hex(int(number))


def reason(request: str) -> str:
    return HTTPStatus(int(request.split()[1])).phrase


def script(letters: str) -> str:
    return unicodedata.name(letters[0]).split()[0].capitalize()


def media_type(file: str) -> str:
    # An instance of its own, since the module's functions also read the files of the system.
    return str(mimetypes.MimeTypes().guess_type(file)[0])


def scope(address: str) -> str:
    ip = ipaddress.ip_address(address)
    scopes = ("loopback", "link_local", "multicast", "private")
    return next((scope for scope in scopes if getattr(ip, f"is_{scope}")), "global")


def type_of(member: str) -> str:
    return type(next(iter(json.loads("{" + member + "}").values()))).__name__


def sum_of(numbers: str) -> str:
    return str(sum(map(int, numbers.split())))


def last(word: str) -> str:
    return word[-1]


def larger(pair: str) -> str:
    return max(pair.split(), key=int)


def leap(year: str) -> str:
    return "Yes" if calendar.isleap(int(year)) else "No"


def hue(colour: str) -> str:
    hue, _, _ = colorsys.rgb_to_hsv(*(channel / 255 for channel in bytes.fromhex(colour[1:])))
    return HUES[round(hue * 6) % 6]
