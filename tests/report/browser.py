"""Headless Chromium, driven over two pipes in its DevTools protocol: JSON, ended by NUL."""

import json
import os
import select
import shutil
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
PATIENCE = 120  # seconds for one answer; a busy machine is slow


class Browser:
    """One page in one browser. `errors` collects what the page has thrown or complained about."""

    def __init__(self, profile: Path):
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        options = [f"--user-data-dir={profile}", "--remote-debugging-pipe", "--headless=new"]
        options += ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        # The browser reads from descriptor 3 and writes to 4.
        connect = "import os, sys; os.dup2({}, 3); os.dup2({}, 4); argv = sys.argv[1:]; "
        connect += "os.execvp(argv[0], argv)"
        self._process = subprocess.Popen(
            [sys.executable, "-c", connect.format(theirs_in, theirs_out)]
            + [str(CHROMIUM), *options, "about:blank"],
            pass_fds=(theirs_in, theirs_out),
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer, self._events, self._number = b"", deque[dict[str, Any]](), 0
        self._session: str | None = None
        self.errors: list[str] = []

    def start(self) -> None:
        """Opens an empty page and listens to it."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        # Seconds of the page's own thread, whatever else the machine does.
        self.send("Performance.enable", timeDomain="threadTicks")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol and waits for its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._events.append(answer)

    def open(self, page: Path, width: int, theme: str) -> None:
        """Loads a page in a window of `width` pixels, in the theme `light` or `dark`."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": theme}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.send("Page.navigate", url=page.as_uri())
        while True:
            event = self._events.popleft() if self._events else self._receive()
            if event["method"] == "Page.loadEventFired":
                return

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def thread_seconds(self) -> float:
        """Processor time of the page's main thread since it was opened."""
        metrics = self.send("Performance.getMetrics")["metrics"]
        return next(m["value"] for m in metrics if m["name"] == "TaskDuration")

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._in], [], [], PATIENCE)
            part = os.read(self._in, 1 << 20) if ready else b""
            assert part, "the browser does not answer"
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        event = json.loads(message)
        self._note_error(event)
        return event

    def _note_error(self, event: dict[str, Any]) -> None:
        given = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(given["exceptionDetails"]))
        if event.get("method") == "Runtime.consoleAPICalled" and given["type"] in (
            "error",
            "warning",
            "assert",
        ):
            self.errors.append(str(given["args"]))
        if event.get("method") == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.errors.append(given["entry"]["text"])
