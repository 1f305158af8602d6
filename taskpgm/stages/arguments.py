"""Parsers for the arguments of a row of `compare`; their ValueError says what is allowed."""

import math
from collections.abc import Callable
from pathlib import Path

from taskpgm.stages.ratio import AUTO


def number(
    least: float | int, strict: bool = False, most: float | int = math.inf
) -> Callable[[str], float]:
    """Reads a finite number that is at least, or more than, `least`, and at most `most`."""

    def read(text: str) -> float:
        value = float(text)
        low = value < least or (strict and value == least)
        if not math.isfinite(value) or low or value > most:
            bound = f" and <= {most:g}" if most < math.inf else ""
            raise ValueError(f"a number {'>' if strict else '>='} {least:g}{bound}")
        return value

    return read


def ratio(text: str) -> str:
    """Reads a ratio: a number, or auto."""
    if text != AUTO:
        try:
            number(0)(text)
        except ValueError:
            raise ValueError("a number >= 0, or auto") from None
    return text


def whole(text: str) -> int:
    """Reads a whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise ValueError("a whole number >= 1")
    return int(text)


def choice(*allowed: str) -> Callable[[str], str]:
    """Reads one of the words `allowed`."""

    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"one of {', '.join(allowed)}")
        return text

    return read


def file(text: str) -> str:
    """Reads the path of an existing file."""
    if not Path(text).is_file():
        raise ValueError("the path of a file, and there is none")
    return text
