"""A failure detector: where one process of several fails, all end, each with one line that says
which it was, and why.

Every process keeps a TCP connection to the primary. One that fails says so through it and waits;
one that is killed says nothing, and its connection breaks (or no longer answers, where its host is
gone). The primary tells all whose failure came first. Else the others would wait in a collective
until JAX's coordination service misses a heartbeat, and end with its dump.

Where no connection can be made, nothing is told, and JAX ends the others.
"""

import atexit
import contextlib
import hmac
import json
import os
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from taskpgm import interrupts

PATIENCE = 5.0  # seconds that the first to fail waits for the others to fail as well
FAREWELL = 5.0  # seconds that the primary, whose end JAX would report on all others, waits for them
LINGER = 20.0  # seconds until a process that has failed ends, whatever the others do
CONNECT = 5.0  # seconds for each of the primary's addresses
HELLO = 60.0  # seconds until one that has connected says who it is
SILENT = (5, 5, 4)  # a connection is probed after 5 s of silence, every 5 s, and given up after 4

_line: "socket.socket | None" = None  # this process's connection


# --- What multihost.py calls ----------------------------------------------------------------------
def watch(process: int, processes: int, host: str | None, tell: Callable[[bytes], bytes]) -> None:
    """Connects this process with the others; all call it, at the same time.

    Args:
      process: its index, of `processes`.
      host: where the others can reach the primary, if it is known.
      tell: returns the primary's bytes on all processes.
    """
    global _line
    if process == 0:
        server = socket.create_server(("", 0), backlog=processes)
        offer = {
            "hosts": [x for x in (host, socket.gethostname(), _outward()) if x],
            "port": server.getsockname()[1],
            "token": secrets.token_hex(16),
            "name": socket.gethostname(),
        }
        offer = json.loads(tell(json.dumps(offer).encode()))
        own, _line = socket.socketpair()
        lines = {0: own}
        events: queue.Queue = queue.Queue()
        _start(_read, _words(own), 0, events)
        _start(_accept, server, offer["token"], lines, events)
        _start(_judge, processes, lines, events)
    else:
        offer = json.loads(tell(b""))
        _line = _connect(offer["hosts"], offer["port"])
        if _line is None:
            return
        _send(_line, {"token": offer["token"], "process": process, "host": socket.gethostname()})
    # Else no connection would break before the last child of a process ends.
    held = {process: _line} if process else lines
    os.register_at_fork(after_in_child=lambda: _drop(held.values()))
    _start(_listen, _line, process, offer["name"])
    atexit.register(_send, _line, {"bye": True})


def report(text: str, code: int) -> NoReturn:
    """Ends this process, which has failed, and all others; `text` is what it has to say."""
    global _failed
    _failed = text, code
    if _line is not None:
        _send(_line, {"failed": text})
    # `_listen` ends this process when it is known who failed first.
    threading.Event().wait(PATIENCE if _line is None else LINGER)
    leave(text, code)


def leave(text: str, code: int) -> NoReturn:
    """Says `text` and ends this process at once, whose main thread may be waiting for ever.
    Artefacts are whole or not there."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    if text:
        with contextlib.suppress(OSError):
            os.write(2, f"{text}\n".encode())
    os._exit(code)


# --- Every process --------------------------------------------------------------------------------
_failed: tuple[str, int] | None = None  # what this process has reported


def _listen(line: socket.socket, process: int, primary: str) -> None:
    """Waits for what the primary tells, and ends this process."""
    told: dict[str, Any] = {"process": 0, "host": primary, "reason": None}
    leaves = False  # the primary has reached its end, and its connection may break
    for word in _words(line):
        if "bye" not in word:
            told = word
            break
        leaves = True
    else:
        if leaves and not _failed:
            return
    text, code = _failed or ("", 1)
    noted = interrupts.exit_code()
    if told.get("together"):
        leave(text if process == 0 else "", code)
    if told["process"] == process:
        leave(text, code)
    if told["reason"] is None and noted is not None:  # all are told to stop, and some were busy
        leave(interrupts.message(noted), noted)
    who = f"error: process {told['process']} on {told['host']}"
    if told["reason"] is None:
        leave(
            f"{who} ended without a word (killed, or out of memory?), and all others with it; "
            "the same command goes on from here",
            code,
        )
    leave(f"{who} failed, and all others with it: {told['reason'].removeprefix('error: ')}", code)


# --- The primary ----------------------------------------------------------------------------------
def _accept(server: socket.socket, token: str, lines: dict, events: queue.Queue) -> None:
    """Lets the other processes in."""
    with contextlib.suppress(OSError):  # no more open files: those that are in are watched
        while True:
            line, _ = server.accept()
            _start(_admit, line, token, lines, events)


def _admit(line: socket.socket, token: str, lines: dict, events: queue.Queue) -> None:
    """Reads from a process that knows the token; sends others away."""
    line.settimeout(HELLO)
    words = _words(line)
    hello = next(words, {})
    if not hmac.compare_digest(str(hello.get("token")).encode(), token.encode()):
        line.close()
        return
    line.settimeout(None)
    _probe(line)
    lines[hello["process"]] = line
    events.put((hello["process"], {"host": hello["host"]}))
    _read(words, hello["process"], events)


def _read(words: Iterator[dict[str, Any]], process: int, events: queue.Queue) -> None:
    """Puts what a process says into `events`, and None when its connection breaks."""
    for word in words:
        events.put((process, word))
    events.put((process, None))


def _judge(processes: int, lines: dict[int, socket.socket], events: queue.Queue) -> None:
    """Waits until a process fails, and tells all which it was."""
    hosts, failed = {0: socket.gethostname()}, {}
    left: set[int] = set()  # those that have reached their end, and may go
    end: float | None = None
    lost: int | None = None
    while lost is None and (not failed or len(left | failed.keys()) < processes):
        try:
            wait = None if end is None else max(0.0, end - time.monotonic())
            process, word = events.get(timeout=wait)
        except queue.Empty:
            break
        if word is None:
            # Who has failed waits for what is decided here. Whatever others have said by now
            # follows from a process that is gone.
            lost = None if process in left or process in failed else process
        elif "host" in word:
            hosts[process] = word["host"]
        elif "bye" in word:
            left.add(process)
            if process == 0:
                _tell(lines, {"bye": True})
        else:
            failed.setdefault(process, word["failed"])
            end = end or time.monotonic() + PATIENCE
    together = lost is None and len(failed) == processes and len(set(failed.values())) == 1
    first = lost if lost is not None else next(iter(failed))
    word = {
        "together": together,
        "process": first,
        "host": hosts[first],
        "reason": None if lost is not None else failed[first],
    }
    _tell(lines, word)
    end = time.monotonic() + FAREWELL
    waiting = lines.keys() - {0, lost}
    while waiting and time.monotonic() < end:
        with contextlib.suppress(queue.Empty):
            process, said = events.get(timeout=max(0.0, end - time.monotonic()))
            waiting -= {process} if said is None else set()
    _send(lines[0], word)


def _tell(lines: dict[int, socket.socket], word: dict[str, Any]) -> None:
    """To all processes but this one."""
    for process, line in list(lines.items()):
        if process:
            _send(line, word)


# --- Connections ----------------------------------------------------------------------------------
def _connect(hosts: list[str], port: int) -> socket.socket | None:
    """A connection to the first of the primary's addresses that answers."""
    for host in hosts:
        with contextlib.suppress(OSError):
            line = socket.create_connection((host, port), timeout=CONNECT)
            line.settimeout(None)
            _probe(line)
            return line
    return None


def _outward() -> str | None:
    """This host's address in the network that it would reach others by."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing
        return probe.getsockname()[0]
    return None


def _probe(line: socket.socket) -> None:
    """Lets a connection break when the host at its other end is gone, or the network between."""
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in zip(("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT"), SILENT, strict=True):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _drop(lines: Iterable[socket.socket]) -> None:
    for line in lines:
        with contextlib.suppress(OSError):
            os.close(line.detach())  # also if a reader holds it


def _send(line: socket.socket, word: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # nobody is there any more: `_words` of the reader ends
        line.sendall(json.dumps(word).encode() + b"\n")


def _words(line: socket.socket) -> Iterator[dict[str, Any]]:
    """What the other side says, until the connection breaks or makes no sense."""
    with contextlib.suppress(OSError, ValueError):
        for text in line.makefile("rb"):
            yield dict(json.loads(text))


def _start(function: Callable[..., None], *args: Any) -> None:
    threading.Thread(target=function, args=args, daemon=True).start()
