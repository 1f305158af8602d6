"""A bar on a terminal, lines without one."""

import io
import sys
import time

import jax
import pytest

from taskpgm.progress import Reporter, duration


@pytest.mark.parametrize(
    "seconds,text",
    [(0.2, "0 s"), (59.6, "1 min"), (75, "1 min 15 s"), (3600, "1 h"), (90061, "1 d 1 h")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_lines_without_a_terminal(capsys):
    with Reporter("adapters", 10, start=2, every=0) as bar:
        bar.update(6, "loss 1.2345")
    told = capsys.readouterr().err
    assert told.startswith("adapters: 6 of 10, ") and "left, loss 1.2345\n" in told


def test_now_and_then_only(capsys):
    with Reporter("adapters", 10, every=60) as bar:
        for k in range(10):
            bar.update(k, "" if k else "compiling")
    assert capsys.readouterr().err == "adapters: 0 of 10, compiling\n"


def test_the_first_process_tells(capsys, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with Reporter("adapters", 10, every=0) as bar:
        bar.update(6)
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setenv("TERM", "xterm")
    with Reporter("base", 10) as bar:
        time.sleep(0.2)  # it is drawn ten times a second at most
        bar.update(5, "loss 2.0")
    assert "base" in out.getvalue() and "5/10" in out.getvalue() and "loss 2.0" in out.getvalue()
