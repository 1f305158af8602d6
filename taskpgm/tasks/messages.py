"""How messages show data that may contain anything."""

from reprlib import Repr

_REPR = Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring, _REPR.maxother = 2, 3, 3, 60, 60
shortened = _REPR.repr  # any value for a message, never long


def printable(text: str) -> str:
    """The text on one line: control characters and lone surrogates are escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
