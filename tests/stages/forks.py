"""Programs in forks of one process that has imported everything (fork_server.py)."""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(devices: int = 1, optimised: bool = False) -> dict[str, str]:
    """Environment of a child process with this many devices, which compiles as tests/conftest.py
    says; `optimised`: as a user's does."""
    own = ("SLURM", "TF_CPP_MIN_LOG_LEVEL", "PYTEST") + ("XLA_FLAGS",) * optimised
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    own_way = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"} if optimised else {}
    return inherited | own_way | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}


@functools.cache
def fork_server() -> tuple[subprocess.Popen, socket.socket]:
    """fork_server.py for all forks of this process of pytest, and ended with it; its door."""
    door, stdin = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.stages.fork_server"],
        stdin=stdin.fileno(),
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment(),
    )
    stdin.close()
    atexit.register(server.wait)
    atexit.register(door.close)
    return server, door


class Fork:
    """A running program: what `subprocess.Popen` is, as far as tests need it."""

    def __init__(self, program: str, argv: list[str], settings: dict[str, object] | None = None):
        """Starts a text of Python, whose sys.argv is `argv`, with these settings of JAX."""
        request = {"program": program, "argv": argv, "settings": settings or {}}
        pipes = [os.pipe() for _ in range(3)]
        _, door = fork_server()
        socket.send_fds(door, [json.dumps(request).encode()], [write for _, write in pipes])
        for _, write in pipes:
            os.close(write)
        out, err, self.end = (read for read, _ in pipes)
        self.stdout, self.stderr = open(out), open(err)
        self.pid = int(door.recv(64))
        self.returncode: int | None = None

    def poll(self, wait: float | None = 0) -> int | None:
        """The exit code, if it has ended; of one that a signal has ended, less than 0.

        `wait`: seconds until its end; None: however long it takes.
        """
        if self.returncode is None and select.select([self.end], [], [], wait)[0]:
            self.returncode = int(os.read(self.end, 64))
            os.close(self.end)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Waits for its end, kills it after `timeout` seconds; what it printed on both streams."""
        late = threading.Timer(timeout, self.kill)
        late.start()
        with self.stdout, self.stderr, ThreadPoolExecutor(2) as pool:
            out, err = pool.map(lambda stream: stream.read(), (self.stdout, self.stderr))
        self.poll(wait=None)
        late.cancel()
        return out, err


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]
