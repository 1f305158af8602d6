"""Runs Python programs in forks of one process that has imported everything: seconds less each.

stdin is a socket. A request on it is JSON and three descriptors, for stdout, stderr and the exit
code of the program; the answer is the process id. Nothing here starts a backend of JAX: its threads
would not be in the forks.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
from importlib import import_module
from typing import Any

import launch  # noqa: F401  # before all others, as it sets what they read when they are imported

PRELOADED = ("taskpgm.stages", "jinja2", "matplotlib.figure", "matplotlib.backends.backend_agg")


def run(streams: list[int], program: str, argv: list[str], settings: dict[str, Any]) -> None:
    """What `python -c PROGRAM` does, with these settings of JAX; ends this process."""
    import jax

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, stream in enumerate((os.open(os.devnull, os.O_RDWR), *streams)):
        os.dup2(stream, number)
    for name, value in settings.items():
        jax.config.update(name, value)
    sys.argv = argv
    exec(program, {"__name__": "__main__"})
    sys.exit()


def main() -> None:
    for name in PRELOADED:
        import_module(name)
    from transformers import PreTrainedTokenizerFast  # noqa: F401

    gc.freeze()
    running: dict[int, int] = {}  # process id -> where its exit code goes
    door = socket.socket(fileno=sys.stdin.fileno())
    woken, bell = os.pipe()
    os.set_blocking(bell, False)
    signal.set_wakeup_fd(bell)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready = select.select([door, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 1 << 16)
            for child in list(running):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    code = os.waitstatus_to_exitcode(status)
                    os.write(running[child], str(code).encode())
                    os.close(running.pop(child))
        if door in ready:
            request, ends, *_ = socket.recv_fds(door, 1 << 16, 3)
            if not request:
                return
            child = os.fork()
            if child == 0:
                run(ends[:2], **json.loads(request))
            running[child] = ends.pop()
            for end in ends:
                os.close(end)
            door.send(str(child).encode())


if __name__ == "__main__":
    main()
