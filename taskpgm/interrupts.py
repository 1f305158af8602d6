"""SIGTERM and SIGINT as a flag: noted by a handler that does nothing else, read where it is safe.

Raising from a signal handler is not safe: Python swallows the exception when the handler happens to
run inside a callback (of the garbage collector, of a native library), and the program goes on.
Imports nothing heavy, so that `launch.py` can install the handlers before anything else.
"""

import os
import signal
import sys
import threading

RESUMABLE = os.EX_TEMPFAIL  # 75: "start the same command again"
INTERRUPTED = 128 + signal.SIGINT  # 130
GRACE = 25.0  # seconds until a program that does not look at the flag is ended anyway

_noted: int | None = None  # the exit code that the first signal asks for


def install() -> None:
    """Notes SIGTERM and SIGINT from now on. Call it from the main thread, once."""
    signal.signal(signal.SIGTERM, _note)
    signal.signal(signal.SIGINT, _note)


def exit_code() -> int | None:
    """75 after SIGTERM, 130 after SIGINT, None while neither has come."""
    return _noted


def message(code: int) -> str:
    """What to tell the user when the program ends with `code`."""
    word = "interrupted" if code == INTERRUPTED else "stopped"
    return f"{word}: the same command goes on from here"


def forget() -> None:
    """Forgets a signal that has come (for tests, which go on after it)."""
    global _noted
    _noted = None


def _note(number: int, frame: object) -> None:
    global _noted
    if _noted is not None:
        return
    _noted = INTERRUPTED if number == signal.SIGINT else RESUMABLE
    if number == signal.SIGINT:
        # Of several processes JAX tells the others of a SIGTERM; alone, this one is noted already.
        os.kill(os.getpid(), signal.SIGTERM)
    timer = threading.Timer(GRACE, _leave, (_noted,))
    timer.daemon = True
    timer.start()


def _leave(code: int) -> None:
    """Ends a program that is busy elsewhere; artefacts are whole or not there, so nothing is lost
    but what the next run computes again."""
    sys.stderr.write(message(code) + "\n")
    sys.stderr.flush()
    os._exit(code)
