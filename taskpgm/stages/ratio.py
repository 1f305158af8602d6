"""The ratio of unary to pairwise term, as written in the config and in rows of `compare`."""

import math

AUTO = "auto"  # the ratio of least predicted loss
TRANSFER = "transfer"
KINDS = ("pmi", "jsd", TRANSFER)  # affinities that a mixture can be made from


def read_ratio(text: str) -> dict[str, float | str]:
    """{affinity: ratio} of a text like `0.5`, `auto` or `pmi=0.5,jsd=auto`; the key "" holds for
    all affinities that are not named.

    Raises:
      ValueError: says what is allowed.
    """
    found: dict[str, float | str] = {}
    for part in text.split(","):
        kind, equals, value = part.rpartition("=")
        kind, value = kind.strip(), value.strip()
        if (equals and kind not in KINDS) or kind in found:
            raise ValueError(f"an affinity is one of {', '.join(KINDS)}, each once")
        if value != AUTO and not (math.isfinite(float(value)) and float(value) >= 0):
            raise ValueError("a ratio is auto or a number >= 0")
        found[kind] = value if value == AUTO else float(value)
    return found


def is_ratio(text: str) -> bool:
    """Whether `read_ratio` can read it."""
    try:
        return bool(read_ratio(text))
    except ValueError:
        return False
