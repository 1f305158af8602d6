"""The owner of a workdir: one launcher at a time, on one host or on many that share a file system.

`owner.json` says who it is and is touched every few seconds. A second launcher is refused while the
owner lives; a dead owner's file is taken over. On the owner's own host its process is looked for;
from another host the file's age decides, by the clock of the file system.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from taskpgm.multihost import on_primary

FILE = "owner.json"
TOUCH = 10.0  # seconds between two signs of life
SILENT = 120.0  # seconds without one after which an owner on another host is dead


class InUse(ValueError):
    """Somebody living has what was to be taken."""


@contextlib.contextmanager
def owned(folder: Path, name: str = FILE) -> Iterator[None]:
    """Inside, this process (the primary of several) owns the workdir.

    Raises:
      ValueError: another launcher does; names its host, its process and since when.
    """
    owner = take(folder, name)
    stop = threading.Event()
    # Of several processes those beside the primary did not take it, and only wait here.
    alive = threading.Thread(target=_touch, args=(folder / name, stop), daemon=True)
    if owner["token"] in _mine:
        alive.start()
    try:
        yield
    finally:
        stop.set()
        if owner["token"] in _mine:
            alive.join()
            _release(folder / name, owner)


_mine: set[str] = set()


@on_primary
def take(folder: Path, name: str = FILE) -> dict[str, Any]:
    """Makes this process the owner, once nobody living is. Raises as `owned`."""
    path = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    owner = _self() | {"token": uuid.uuid4().hex, "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}
    for _ in range(10):
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            _take_over(path)
            continue
        with os.fdopen(handle, "w") as file:
            json.dump(owner, file)
        _mine.add(owner["token"])
        return owner
    raise InUse(f"{path}: another launcher takes this workdir at the same time; start again")


def _take_over(path: Path) -> None:
    """Removes the file of an owner that is dead. Raises ValueError where it lives."""
    try:
        text = path.read_text(encoding="utf-8")
        age = _age(path)
    except FileNotFoundError:
        return
    try:
        owner = dict(json.loads(text))
    except (ValueError, TypeError):
        owner = {}  # killed, or caught, between making the file and writing it
        if age < 2:
            time.sleep(0.3)
            return
    if owner and _lives(owner, age):
        raise InUse(
            f"the workdir {path.parent} is in use by another launcher: process {owner.get('pid')} "
            f"on {owner.get('host')}, since {owner.get('since')}; wait for it, stop it, or choose "
            "another --workdir"
        )
    # Renaming succeeds for one of several that find the same dead owner; what it took must be the
    # dead one's, else it is put back.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.old")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if aside.read_text(encoding="utf-8") != text:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink()


def living(path: Path) -> dict[str, Any] | None:
    """The living owner that a file tells of; None where there is none."""
    try:
        owner = dict(json.loads(path.read_text(encoding="utf-8")))
        return owner if _lives(owner, _age(path)) else None
    except (OSError, ValueError, TypeError):
        return None


def _self() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "space": _process_space(),
    }


def _lives(owner: dict[str, Any], age: float) -> bool:
    here = (owner.get("host"), owner.get("space")) == (socket.gethostname(), _process_space())
    if not here:
        return age < SILENT
    if owner.get("pid") == os.getpid():  # an earlier run inside this very process
        return owner.get("token") in _mine
    started = _started(int(owner.get("pid") or 0))
    return started is not None and started == owner.get("started")


def _started(pid: int) -> str | None:
    """When a process of this host began, in its own unit; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    return "running" if pid else None


def _process_space() -> str:
    """Tells containers apart that share a host's name: their process numbers mean nothing to
    each other."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _age(path: Path) -> float:
    """Seconds since the owner's last sign of life, by the clock of the file system."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now - path.stat().st_mtime


def _touch(path: Path, stop: threading.Event) -> None:
    while not stop.wait(TOUCH):
        with contextlib.suppress(OSError):
            os.utime(path)


def _release(path: Path, owner: dict[str, Any]) -> None:
    """Removes the file, if it is still this owner's."""
    _mine.discard(owner["token"])
    with contextlib.suppress(OSError, ValueError):
        if json.loads(path.read_text(encoding="utf-8")).get("token") == owner["token"]:
            path.unlink()
