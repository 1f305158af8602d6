"""Several processes, one run: how they find each other, who acts for all, and how they end.

Every process runs the same stages and the same programs in the same order. Whatever is decided from
files, or written into them, is the first process's alone (`by_first`), so that no two can differ.
"""

import functools
import itertools
import os
import pickle
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax

# The store and the barriers of the processes' coordinator. JAX has no public name for them.
from jax._src import distributed
from jax.experimental import multihost_utils

RESUMABLE = os.EX_TEMPFAIL  # 75: "start the same command again"
PERIOD = 5_000  # ms between two looks at whether another process has failed
PATIENCE = 2 * PERIOD  # ms that a process which fails waits for the others to fail as well
FAILED = "taskpgm/failed"
VISIBLE = ("jax_cuda_visible_devices", "jax_rocm_visible_devices")


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
        jax.distributed.initialize(coordinator, processes, process)
    elif _slurm("TASKS") > 1:
        visible = {name: jax.config.values[name] for name in VISIBLE}
        jax.distributed.initialize()
        if _slurm("TASKS") == _slurm("NODES") and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
            # JAX gives a task of SLURM one GPU. Alone on its node, it is to have them all.
            for name, devices in visible.items():
                jax.config.update(name, devices)
    elif (jax.config.jax_platforms or "").split(",")[0] == "tpu":  # JAX's choice where there is one
        try:
            jax.distributed.initialize()
        except (ValueError, OSError) as error:  # no metadata of a pod: a single host, most likely
            if jax.process_count() > 1:
                raise ValueError(
                    f"distributed: {jax.process_count()} TPU hosts that do not find each other "
                    f"({error}): give each --coordinator, --num_processes and --process_id"
                ) from error
    return jax.process_index(), jax.process_count()


def _slurm(what: str) -> int:
    """TASKS or NODES of this step of SLURM; 1 for a process that srun has not started."""
    if "SLURM_PROCID" not in os.environ:
        return 1
    names = (f"SLURM_STEP_NUM_{what}", f"SLURM_N{what}")
    return int(next((os.environ[name] for name in names if name in os.environ), 1))


# --- Acting for all ------------------------------------------------------------------------------
_calls = itertools.count()
_acting = False  # whether this is the first process, in a call that the others wait for


def by_first(function: Callable) -> Callable:
    """`function`, run by the first process while the others wait: all return what it returned
    there (pickled), or raise what it raised.

    All processes must call it, in the same order. A call inside another is the first process's own
    business. The function must not compute on devices of other processes. Alone, a process just
    calls it. Where SIGTERM has come to any process, all end here with exit code 75 instead.
    """

    @functools.wraps(function)
    def called(*args, **kwargs):
        global _acting
        state = distributed.global_state
        if state.client is None or state.num_processes == 1 or _acting:
            return function(*args, **kwargs)
        if asked_to_stop():
            raise SystemExit(RESUMABLE)
        key = f"taskpgm/{next(_calls)}/{function.__qualname__}"
        if state.process_id == 0:
            _acting = True
            try:
                value, error = function(*args, **kwargs), None
            except Exception as raised:
                value, error = None, raised
            finally:
                _acting = False
            state.client.key_value_set_bytes(key, _pickled(value, error))
        else:
            get = state.client.blocking_key_value_get_bytes
            value, error = pickle.loads(_patiently(lambda _: get(key, PERIOD)))
        meet = state.client.wait_at_barrier
        _patiently(lambda attempt: meet(f"{key}/{attempt}", PERIOD))
        if state.process_id == 0:
            state.client.key_value_delete(key)
        if error is not None:
            raise error
        return value

    return called


def _patiently(wait: Callable[[int], Any]) -> Any:
    """What wait(attempt) returns once it does not time out; ends with a process that has failed."""
    for attempt in itertools.count():
        try:
            return wait(attempt)
        except jax.errors.JaxRuntimeError as error:
            if distributed.global_state.client.key_value_dir_get(FAILED):
                fail("", 1)
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _pickled(value: Any, error: Exception | None) -> bytes:
    data = pickle.dumps((value, error))
    try:
        pickle.loads(data)
    except Exception:  # an exception that cannot be made again from its arguments
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
    return data


def agree(value: str, what: str) -> None:
    """Makes sure that `value` is the same on all processes.

    Raises:
      ValueError: it is not; names `what` differs, and the processes that differ from the first.
    """
    state = distributed.global_state
    if state.client is None:
        return
    folder = f"taskpgm/{next(_calls)}/agree"
    state.client.key_value_set(f"{folder}/{state.process_id:08d}", value)
    _patiently(lambda attempt: state.client.wait_at_barrier(f"{folder}/{attempt}", PERIOD))
    first, *others = (told for _, told in sorted(state.client.key_value_dir_get(folder)))
    differ = [str(i) for i, told in enumerate(others, 1) if told != first]
    if differ:
        raise ValueError(
            f"{what} of process {', '.join(differ[:5])} is not that of process 0: all need the "
            "same command, the same files and the same versions"
        )


# --- Ending --------------------------------------------------------------------------------------
_checks = itertools.count()
_stopping = False


def asked_to_stop() -> bool:
    """Whether SIGTERM has come to any of several processes. All must ask, equally often: they get
    the same answer, and once it is yes it stays."""
    global _stopping
    # The count never begins anew, as the steps of one run after another would.
    _stopping = _stopping or multihost_utils.reached_preemption_sync_point(next(_checks))
    return _stopping


def fail(text: str, code: int) -> NoReturn:
    """Says on stderr what went wrong and ends this process.

    Of several processes the first speaks for all that fail together; one whom another's failure
    has reached has nothing to add (""). One that fails alone says so itself, and ends without the
    usual goodbye, which would wait for the others while they wait for it: once it is gone they end
    too, at once where a collective breaks, else when its heartbeat has been missing for 100
    seconds.
    """
    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        print(text, file=sys.stderr)
        sys.exit(code)
    try:
        state.client.key_value_set(f"{FAILED}/{state.process_id}", text)
        state.client.wait_at_barrier(FAILED, PATIENCE)
        if state.process_id == 0:
            said = {told for _, told in state.client.key_value_dir_get(FAILED)}
            print("\n".join(sorted(said - {""})), file=sys.stderr)
    except jax.errors.JaxRuntimeError:  # the others have not failed
        if text:
            print(f"process {state.process_id}: {text}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if state.process_id == 0:
        time.sleep(1)  # with it goes the coordinator, and whoever is still there would complain
    os._exit(code)
