"""Workers on Ray: so many processes that share the workdir, wherever Ray places them.

A worker is `launch.py --shared`; the leases of `units.py` say who makes what, so Ray only places
processes, gives each its devices, and starts those again that fail.
"""

import collections
import subprocess
from collections.abc import Sequence
from typing import Any

from taskpgm.stages.context import say
from taskpgm.stages.units import FAILED

LAST = 40  # lines of a worker that are kept to say why it failed


def work(command: Sequence[str]) -> tuple[int, list[str]]:
    """Runs one worker to its end, on the machine that Ray has chosen: its exit code, and the last
    lines that it printed. Ray shows all of them where it was started."""
    last: collections.deque[str] = collections.deque(maxlen=LAST)
    with subprocess.Popen(
        list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last.append(line.rstrip())
    return process.returncode, list(last)


def run_on_ray(address: str, command: Sequence[str], section: Any) -> None:
    """Starts `section.workers` workers and waits until all is made.

    Args:
      address: of a Ray cluster, or `local` for one on this machine.
      command: of one worker.
      section: `ray` of the config.

    Raises:
      ValueError: Ray is not installed, or a worker has failed more often than `section.retries`;
        names the unit.
    """
    try:
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"--ray={address}: install it, by pip install '.[ray]'") from error
    where = {"num_cpus": section.cpus * section.workers} if address == "local" else {}
    ray.init(address=None if address == "local" else address, include_dashboard=False, **where)
    remote = ray.remote(num_cpus=section.cpus, num_gpus=section.gpus, max_retries=0)(work)
    try:
        running = {remote.remote(list(command)): (i, 0) for i in range(section.workers)}
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            number, failed = running.pop(ended)
            try:
                code, last = ray.get(ended)
            except RayError as error:  # its machine is gone
                code, last = -1, [str(error).splitlines()[0]]
            if code == 0:
                say("ray", f"worker {number} has nothing left to make")
                continue
            reason = failure(last)
            say("ray", f"worker {number} ended with {code}: {reason}")
            if failed == section.retries:
                raise ValueError(f"worker {number} has failed {failed + 1} times: {reason}")
            running[remote.remote(list(command))] = number, failed + 1
    finally:
        ray.shutdown()


def failure(last: Sequence[str]) -> str:
    """Which unit failed, and why, from a worker's last lines."""
    unit = next((line.strip() for line in reversed(last) if line.strip().endswith(FAILED)), "")
    error = next((line for line in reversed(last) if line.startswith("error: ")), "")
    return "; ".join(filter(None, [" ".join(unit.split()), error])) or "without a word"
