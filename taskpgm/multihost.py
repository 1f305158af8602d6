"""Several processes, one run: how they find each other, who acts for all, and how they end.

Every process runs the same stages and the same programs in the same order. Whatever is decided from
files, or written into them, is done by the primary process only (`on_primary`), so that no two can
differ.
"""

import contextlib
import functools
import hashlib
import itertools
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from taskpgm import failures, interrupts

F = TypeVar("F", bound=Callable)
VISIBLE = ("jax_cuda_visible_devices", "jax_rocm_visible_devices")
# Processes that begin wait for each other this long.
JOIN = 300  # seconds
# Processes that end wait for each other this long; then JAX ends those that still run.
SHUTDOWN = 30  # seconds
LATE = (
    "error: distributed: after {} s not all processes of this run have come; start the same "
    "command on every host, and see what the others have said"
)


# --- Finding each other --------------------------------------------------------------------------
def initialize_distributed(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> tuple[int, int]:
    """Joins the processes of one run; call it before anything touches a device.

    From the arguments when a coordinator ("host:port") is given; else from the environment, if it
    is a TPU's or SLURM's; else this process is alone. Returns (process index, number of processes).

    Raises:
      ValueError: when a coordinator is given without the number of processes and this one's index,
        or the hosts of a TPU pod cannot find each other.
    """
    if coordinator:
        if processes is None or process is None:
            raise ValueError(
                "distributed: with a coordinator, the number of processes and this process's "
                "index are needed too"
            )
        _join(coordinator, processes, process)
    elif _slurm("TASKS") > 1:
        _join()
        if _slurm("TASKS") == _slurm("NODES") and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
            # JAX gives a task of SLURM one GPU. Alone on its node, it is to have them all.
            for name in VISIBLE:
                jax.config.update(name, os.environ.get(name.upper(), "all"))
    elif _platform() == "tpu":
        try:
            _join()
        except (ValueError, OSError) as error:  # no metadata of a pod: a single host, most likely
            if jax.process_count() > 1:
                raise ValueError(
                    f"distributed: {jax.process_count()} TPU hosts that do not find each other "
                    f"({error}): give each --coordinator, --num_processes and --process_id"
                ) from error
    if several():
        host = coordinator.rpartition(":")[0] if coordinator else None
        failures.watch(jax.process_index(), jax.process_count(), host, _broadcast)
    return jax.process_index(), jax.process_count()


def _join(*args: Any) -> None:
    late = threading.Timer(JOIN, failures.leave, (LATE.format(JOIN), 1))
    late.daemon = True
    late.start()
    # JAX, which would end this process with a dump, comes second.
    times = {"initialization_timeout": JOIN + 30, "shutdown_timeout_seconds": SHUTDOWN}
    try:
        jax.distributed.initialize(*args, **times)
    finally:
        late.cancel()


def _platform() -> str:
    """The platform that JAX was told to prefer; "" where it may choose."""
    wanted = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    return (wanted or "").split(",")[0]


def _slurm(what: str) -> int:
    """TASKS or NODES of this step of SLURM; 1 for a process that srun has not started."""
    if "SLURM_PROCID" not in os.environ:
        return 1
    names = (f"SLURM_STEP_NUM_{what}", f"SLURM_N{what}")
    return int(next((os.environ[name] for name in names if name in os.environ), 1))


# --- Acting for all ------------------------------------------------------------------------------
_acting = False  # whether this is the primary process, in a call that the others wait for


def on_primary(function: F) -> F:
    """`function`, run by the primary process (index 0) while the others wait: all return what it
    returned there (pickled), or raise what it raised.

    All processes must call it, in the same order, from their main thread. A call inside another is
    the primary's own business. The function must not compute on devices of other processes. Alone,
    a process just calls it. Where a signal has come to any process, all end here instead.
    """

    @functools.wraps(function)
    def called(*args, **kwargs):
        global _acting
        if _acting or not several():
            return function(*args, **kwargs)
        end_if_asked()
        data = b""
        if jax.process_index() == 0:
            _acting = True
            try:
                data = _pickled(function(*args, **kwargs), None)
            except Exception as raised:
                data = _pickled(None, raised)
            finally:
                _acting = False
        value, error = pickle.loads(_broadcast(data))
        if error is not None:
            raise error
        return value

    return called  # type: ignore[return-value]


def several() -> bool:
    """Whether this process is one of several. (Asks no backend, so it is cheap and early.)"""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _broadcast(data: bytes) -> bytes:
    """The primary's bytes, on all processes."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    # One compiled program for each power of two, not for each size.
    padded = np.zeros(1 << max(size - 1, 1).bit_length(), np.uint8)
    if jax.process_index() == 0:
        padded[:size] = np.frombuffer(data, np.uint8)
    return multihost_utils.broadcast_one_to_all(padded)[:size].tobytes()


def _pickled(value: Any, error: Exception | None) -> bytes:
    data = pickle.dumps((value, error))
    try:
        pickle.loads(data)
    except Exception:  # an exception that cannot be made again from its arguments
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
    return data


def assert_same_on_all_hosts(value: str, what: str) -> None:
    """Makes sure that `value` is the same on all processes.

    Raises:
      ValueError: it is not; names `what` differs, and the processes that differ from the primary.
    """
    if not several():
        return
    own = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    all_values = multihost_utils.process_allgather(own)
    differ = [str(i) for i in np.flatnonzero((all_values != all_values[0]).any(1))]
    if differ:
        raise ValueError(
            f"{what} of process {', '.join(differ[:5])} is not that of process 0: all need the "
            "same command, the same files and the same versions"
        )


# --- Ending --------------------------------------------------------------------------------------
_checks = itertools.count()
_stopping = False


def preemption_requested() -> bool:
    """Whether SIGTERM or SIGINT has come, to this process or to any of several.

    All processes must ask, equally often: they get the same answer, and once it is yes it stays.
    The primary alone, in a call that the others wait for, is told no: they do not ask.
    """
    global _stopping
    if _acting:
        return False
    if not several():
        return interrupts.exit_code() is not None
    # The count never begins anew, as the steps of one run after another would.
    _stopping = _stopping or multihost_utils.reached_preemption_sync_point(next(_checks))
    return _stopping


def end_if_asked() -> None:
    """Ends the program where a signal asks for it; every stage calls this between two pieces of
    work. All processes must call it, equally often.

    Raises:
      SystemExit: with 75 after SIGTERM, 130 after SIGINT.
    """
    if preemption_requested():
        raise SystemExit(interrupts.exit_code() or interrupts.RESUMABLE)


def fail(text: str, code: int) -> NoReturn:
    """Says on stderr what went wrong and ends this process.

    Of several processes that fail together the primary speaks for all; where one fails alone, each
    says which it was.
    """
    if several():
        failures.report(text, code)
    print(text, file=sys.stderr, flush=True)
    with contextlib.suppress(RuntimeError):  # no memory for one more thread
        # A native library that has run out of memory may never let the program end.
        watch = threading.Timer(failures.LINGER, os._exit, (code,))
        watch.daemon = True
        watch.start()
    sys.exit(code)
