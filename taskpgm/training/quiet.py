"""What Orbax says, besides what it raises, about an error: nothing.

A restore reads all arrays at once, each in a coroutine. At the first that cannot be read Orbax
raises, and closes its event loop over the others: TensorStore's threads find it closed when their
reads end, and coroutines are dropped half-way or before they began. Each writes a traceback of its
own to stderr, at any later moment and in the midst of others' lines: of the one error that the
caller has been told of.
"""

import functools
import inspect
import logging as py_logging
import os
import sys
import warnings
from collections.abc import Callable

from absl import logging


def quiet_orbax() -> None:
    """From now on stderr is spared Orbax's reports, on saves and on errors, which are raised to the
    caller, who reports them in one line; and whatever coroutines say that nobody waits for.

    A program that runs no coroutines of its own calls it once, when it starts; importing this
    module changes nothing.
    """
    logging.get_absl_logger().addFilter(_not_of_orbax)
    py_logging.getLogger("asyncio").setLevel(py_logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    sys.unraisablehook = functools.partial(_report_unless_abandoned, sys.unraisablehook)


def _not_of_orbax(record: py_logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}" not in record.pathname


def _report_unless_abandoned(
    report: Callable[["sys.UnraisableHookArgs"], object], raised: "sys.UnraisableHookArgs"
) -> None:
    """Leaves to `report` what was raised where nobody can catch it, but for what reads do that go
    on after another has failed."""
    loop_is_closed = isinstance(raised.exc_value, RuntimeError) and (
        str(raised.exc_value) == "Event loop is closed"
    )
    if not loop_is_closed and not inspect.iscoroutine(raised.object):
        report(raised)
