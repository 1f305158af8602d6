"""rank_pattern and alpha_pattern of adapter_config.json: which module has which."""

import re
from collections.abc import Mapping
from typing import Any

KEYS = ("rank_pattern", "alpha_pattern")
# A repeated group, or many repetitions, may take for ever to be matched with a name.
LONGEST, MOST_REPEATS = 200, 3


def of_module(raw: Mapping[str, Any], key: str, name: str) -> float | None:
    """What the first pattern that fits a module says of it; None where none does."""
    for pattern, value in (raw.get(key) or {}).items():
        if re.match(_whole(pattern), name):
            return value
    return None


def check_patterns(raw: Mapping[str, Any], where: str) -> None:
    """Raises ValueError, opening with `where`, for what is no pattern or may take for ever."""
    for key in KEYS:
        for pattern in raw.get(key) or {}:
            try:
                re.compile(_whole(pattern))
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(
                    f"{where}: {key}: {pattern[:80]!r} is no pattern ({error})"
                ) from None
            repeats = sum(pattern.count(sign) for sign in "*+{")
            grouped = re.search(r"\)[*+{]", pattern)
            if grouped or repeats > MOST_REPEATS or len(pattern) > LONGEST:
                raise ValueError(
                    f"{where}: {key}: the pattern {pattern[:80]!r} repeats too much, or is too "
                    "long: name the modules"
                )


def _whole(pattern: str) -> str:
    """As PEFT matches it: with the end of a name, from a dot on."""
    return rf"(.*\.)?({pattern})$"
