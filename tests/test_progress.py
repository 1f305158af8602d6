"""A bar on a terminal, lines without one."""

import io
import sys
import time

import jax
import pytest

from taskpgm import progress
from taskpgm.progress import COMPILED, LOWERED, Reporter, Work, counted, duration


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


def test_what_is_being_done_is_told_from_the_whole_to_its_part():
    assert progress.doing() == ""
    with Work("runs", 4, start=1, unit="model") as outer, Work("reading"):
        assert progress.doing() == "runs: 1 of 4 models; reading"
        outer.done = 2
        assert progress.doing("reading").startswith("runs: 2 of 4 models, ")
    told = [progress.doing("rows") for _ in counted("abc", "rows", 3, unit="row")]
    assert [text.split(" rows")[0] for text in told] == ["0 of 3", "1 of 3", "2 of 3"]
    assert progress.doing() == ""


def test_compiling_is_told_while_it_lasts():
    """The names of JAX's events, and their order."""
    heard = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        heard.append((event, progress.doing()))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.jit(lambda x: x * 2 + 17)(1.0)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    order = [(event, text) for event, text in heard if event in (LOWERED, COMPILED)]
    assert order[:2] == [(LOWERED, "compiling"), (COMPILED, "")]
    assert progress.doing() == ""


def test_silence_ends_with_a_line_and_with_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_said_at", time.monotonic() - 100)
    assert progress.silence() > 99
    with Reporter("base", 3) as shown:
        assert progress.silence() > 99  # a bar there is only on a terminal
        monkeypatch.setattr(shown, "bar", "on a terminal")
        assert progress.silence() == 0
        monkeypatch.setattr(shown, "bar", None)
        shown.update(1)
    assert progress.silence() < 50 and "base: 1 of 3" in capsys.readouterr().err
