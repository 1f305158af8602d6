"""What people are shown of data that may hold anything."""

from reprlib import Repr

_REPR = Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring, _REPR.maxother = 2, 3, 3, 60, 60
shortened = _REPR.repr  # a value for a message: never long, whatever it is


def printable(text: str) -> str:
    """The text on one line: control characters, and halves of surrogate pairs, as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
