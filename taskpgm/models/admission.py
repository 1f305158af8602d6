"""A kernel has to show that it is right, on this machine and in this process, before it is used."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_LOG = logging.getLogger(__name__)


def admitted(what: str, instead: str, compare: Callable[[], str | None]) -> bool:
    """Whether `compare` finds nothing wrong. If it says what is, or raises, one line is logged:
    what is not used, what takes its place, and why. Callers cache the answer.

    The question comes up while a program is traced. In a thread of its own `compare` is under no
    trace, no mesh and no other context of that program: what it calls runs, on one device.
    """
    try:
        with ThreadPoolExecutor(1) as thread:
            wrong = thread.submit(compare).result()
    except Exception as error:  # a compiler's, of any kind
        first = (str(error).strip().splitlines() or [""])[0]
        wrong = f"{type(error).__name__}: {first}"[:300]
    if wrong:
        _LOG.warning("%s is not used on this machine, but %s: %s", what, instead, wrong)
    return not wrong
