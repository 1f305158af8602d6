"""Keys of the config, each with a default, its allowed values and a meaning; and their sections."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast


@dataclass(frozen=True)
class Key:
    """A key of the config.

    Attributes:
      default: its default value, whose type all values must have.
      allowed: the allowed values in words, for the table of keys and for errors.
      holds: whether a value of that type is allowed.
      meaning: one sentence.
    """

    default: Any
    allowed: str
    holds: Callable[[Any], bool]
    meaning: str


# --- What a key may be ---------------------------------------------------------------------------
MOST = 2**53  # far above any count here; above it float64 cannot represent every integer


def integer(default: int, least: int, meaning: str, most: int = MOST) -> Key:
    """A whole number from `least` to `most`."""
    words = f"a whole number >= {least}" + (f" and <= {most}" if most < MOST else "")
    return Key(default, words, lambda x: least <= x <= most, meaning)


def number(
    default: float,
    meaning: str,
    *,
    least: float = 0.0,
    above: bool = False,
    most: float = math.inf,
    below: bool = False,
) -> Key:
    """A finite number from `least` to `most`; `above` and `below` exclude these two."""
    words = f"a number {'>' if above else '>='} {least:g}"
    if most < math.inf:
        words += f" and {'<' if below else '<='} {most:g}"

    def holds(x: float) -> bool:
        high = x < most if below else x <= most
        return math.isfinite(x) and (x > least if above else x >= least) and high

    return Key(default, words, holds, meaning)


def share(meaning: str) -> Key:
    """A part of a task's rows, a tenth by default."""
    return number(0.1, meaning, most=1.0, below=True)


def axis(default: int, meaning: str) -> Key:
    """The size of an axis of the mesh."""
    most = 2**20
    words = f"a whole number >= 1 and <= {most}, or -1: what is left"
    return Key(default, words, lambda x: x == -1 or 1 <= x <= most, meaning)


def choice(default: str, allowed: Sequence[str], meaning: str) -> Key:
    """One of the words `allowed`."""
    return Key(default, " or ".join(map(repr, allowed)), lambda x: x in allowed, meaning)


LONGEST_PATH, LONGEST_NAME = 4096, 255  # bytes, of a path and of each name in it


def text(default: str, meaning: str, empty: bool = True) -> Key:
    """A path or a name. Neither has control characters, and no file system takes longer ones."""

    def holds(x: str) -> bool:
        return (bool(x.strip()) if x or not empty else True) and is_path(x)

    allowed = f"printable text of at most {LONGEST_PATH} bytes, {LONGEST_NAME} between two /"
    return Key(default, allowed if empty else f"{allowed}, not empty", holds, meaning)


def is_path(x: str) -> bool:
    """Whether a file system could hold it."""
    if not x.isprintable():  # which halves of surrogate pairs are not either
        return False
    longest = max(len(name.encode()) for name in x.split("/"))
    return len(x.encode()) <= LONGEST_PATH and longest <= LONGEST_NAME


def file(meaning: str) -> Key:
    """The path of an existing file, or ""."""
    return Key(
        "",
        'an existing file, or ""',
        lambda x: not x or (is_path(x) and Path(x).is_file()),
        meaning,
    )


def switch(default: bool, meaning: str) -> Key:
    """True or False."""
    return Key(default, "True or False", lambda x: True, meaning)


def are_names(x: Sequence[Any]) -> bool:
    """Whether all are names, none of them twice."""
    named = all(isinstance(name, str) and name.strip() and is_path(name) for name in x)
    return named and len(set(x)) == len(x)


def words(
    default: tuple[str, ...], meaning: str, allowed: Sequence[str] | None = None, least: int = 1
) -> Key:
    """Different names, in a tuple: of `allowed` where that is given, and then at least `least`."""
    told = f"some of {', '.join(allowed)}" if allowed else "a tuple of different names"

    def holds(x: Sequence[Any]) -> bool:
        known = allowed is None or (len(x) >= least and all(name in allowed for name in x))
        return are_names(x) and known

    return Key(default, told, holds, meaning)


# --- Sections ------------------------------------------------------------------------------------
Section = Mapping[str, "Key | Section"]


def keys_of(section: Section, prefix: str = "") -> dict[str, Key]:
    """{"tasks.source": Key, ...} of a section and those inside it, in order."""
    found = {}
    for name, value in section.items():
        if isinstance(value, Key):
            found[prefix + name] = value
        else:
            found |= keys_of(value, f"{prefix}{name}.")
    return found


def sweep_section(schema: Section, sections: Sequence[str], left_out: Sequence[str]) -> Section:
    """A section of the keys of `sections`, each a tuple of values; and k, of rows that keep k
    tasks."""
    found: dict[str, Key | Section] = {
        "k": Key((), "a tuple of whole numbers", lambda x: True, "of rows that keep k tasks")
    }
    for of in sections:
        keys = {k: v for k, v in cast(Section, schema[of]).items() if f"{of}.{k}" not in left_out}
        found |= _tuples_of(keys, f"{of}.")
    return found


def _tuples_of(section: Section, prefix: str) -> Section:
    """The same keys, each a tuple of values of the key that it names."""
    found: dict[str, Key | Section] = {}
    for name, key in section.items():
        if isinstance(key, Key):
            meaning = f"values of `{prefix}{name}` to try, each beside the others"
            found[name] = Key((), "a tuple of its values", lambda x: True, meaning)
        else:
            found[name] = _tuples_of(key, f"{prefix}{name}.")
    return found


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists and tuples are values."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def allows(key: Key, value: Any) -> bool:
    """Whether a value has the key's type and is allowed."""
    kind = type(key.default)
    if kind is tuple:
        return isinstance(value, list | tuple) and key.holds(value)
    if kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        return fits and abs(value) < HUGE and key.holds(value)
    return type(value) is kind and key.holds(value)


HUGE = 1e38  # float32 ends there


def shown(value: Any) -> str:
    """A value in an error message: one line of limited length."""
    try:
        line = repr(value)
    except ValueError:  # Python writes no number of more than some thousand digits
        return "a number of thousands of digits"
    return line if len(line) <= 100 else f"{line[:97]}..."
