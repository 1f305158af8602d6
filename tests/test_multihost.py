"""How processes find each other, what the primary does for all, and how they end."""

import os
import signal
import socket
import threading
import time

import jax
import pytest

from taskpgm import interrupts
from taskpgm.multihost import (
    JOIN,
    LATE,
    SHUTDOWN,
    VISIBLE,
    assert_same_on_all_hosts,
    end_if_asked,
    fail,
    initialize_distributed,
    on_primary,
    preemption_requested,
)
from tests.stages.forks import Fork, free_port
from tests.stages.launching import own_lines


@pytest.fixture
def calls(monkeypatch):
    """Arguments of jax.distributed.initialize, which is not really called."""
    made = []

    def initialize(*args, initialization_timeout, shutdown_timeout_seconds):
        assert shutdown_timeout_seconds == SHUTDOWN and initialization_timeout > JOIN
        made.append(args)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    platforms = jax.config.jax_platforms
    yield made
    jax.config.update("jax_platforms", platforms)


def test_alone_there_is_nothing_to_join(calls):
    assert initialize_distributed() == (0, 1) and not calls


def test_a_coordinator_needs_numbers(calls):
    with pytest.raises(ValueError, match="number of processes"):
        initialize_distributed("localhost:1234")
    initialize_distributed("localhost:1234", 2, 0)
    assert calls == [("localhost:1234", 2, 0)]


@pytest.mark.parametrize(
    ("nodes", "named", "visible"), [("2", None, "all"), ("2", "0,1", "0,1"), ("1", None, None)]
)
def test_slurm_gives_one_process_a_node_all_its_gpus(calls, monkeypatch, nodes, named, visible):
    """JAX gives each Slurm task one GPU; a task that has the whole node gets all of them back."""
    set_to = {}
    monkeypatch.setattr(jax.config, "update", set_to.__setitem__)
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("SLURM_NNODES", nodes)
    if named:
        monkeypatch.setenv("JAX_CUDA_VISIBLE_DEVICES", named)
    initialize_distributed()  # in an allocation, but not under srun
    assert not calls
    monkeypatch.setenv("SLURM_PROCID", "0")
    initialize_distributed()
    monkeypatch.undo()
    assert calls == [()] and set_to.get(VISIBLE[0]) == visible


def test_hosts_with_a_tpu_look_for_each_other(calls, monkeypatch):
    jax.config.update("jax_platforms", "tpu,cpu")
    initialize_distributed()
    assert calls == [()]

    def lost(**_):
        raise ValueError("no metadata")

    monkeypatch.setattr(jax.distributed, "initialize", lost)
    assert initialize_distributed() == (0, 1)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ValueError, match="4 TPU hosts that do not find each other .no metadata"):
        initialize_distributed()


def test_alone_a_process_acts_for_itself():
    assert on_primary(lambda x: x + 1)(1) == 2
    with pytest.raises(KeyError):
        on_primary({}.__getitem__)("a")
    assert_same_on_all_hosts("a", "the letter")


def test_alone_a_process_ends_by_itself(capsys, monkeypatch):
    started = []
    monkeypatch.setattr(threading.Timer, "start", lambda timer: started.append(timer))
    with pytest.raises(SystemExit) as end:
        fail("error: no", 1)
    assert end.value.code == 1 and capsys.readouterr().err == "error: no\n"
    (watch,) = started  # should the end be held up
    assert (watch.function, watch.args, watch.daemon) == (os._exit, (1,), True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_alone_a_signal_is_noted_and_ends_the_program_where_it_looks(monkeypatch, number, code):
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr(interrupts, "GRACE", 1e6)
    try:
        interrupts.install()
        assert not preemption_requested()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # a second one changes nothing
        assert preemption_requested()
        with pytest.raises(SystemExit) as end:
            end_if_asked()
        assert end.value.code == code
    finally:
        interrupts.forget()
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])


@pytest.mark.parametrize("process", [0, 1])
def test_one_that_the_others_never_join_says_so(process):
    where = f"localhost:{free_port()}"
    program = "from taskpgm import multihost as m; m.JOIN = 1; "
    program += f"m.initialize_distributed('{where}', 2, {process})"
    fork = Fork(program, ["-c"])
    assert fork.communicate(timeout=60) == ("", LATE.format(1) + "\n")
    assert fork.returncode == 1


DRIVER = """
import os, signal, sys, time
from taskpgm import interrupts
interrupts.install()
from taskpgm import multihost as m
me, _ = m.initialize_distributed(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
def main():
    SCRIPT
try:
    main()
except Exception as error:
    m.fail(f"error: {error}", 1)
"""


def pair(script: str, stop=None) -> list[tuple[int | None, str, str]]:
    """Runs `script` as two processes; (exit code, stdout, own lines of stderr) of each."""
    port = str(free_port())
    program = DRIVER.replace("SCRIPT", script.strip().replace("\n", "\n    "))
    running = [Fork(program, ["-c", port, str(i)]) for i in range(2)]
    try:
        if stop:
            stop(running)
        said = [process.communicate(timeout=120) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        (p.returncode, out, own_lines(err)) for p, (out, err) in zip(running, said, strict=True)
    ]


def test_all_have_what_the_primary_found():
    """For small and large values; inside such a call, another one runs in the primary only."""
    script = """
inner = m.on_primary(lambda x: x + me)
value = m.on_primary(lambda: ("a" * 70_000, inner(1)))()
print("found", len(value[0]), value[1], m.on_primary(lambda: None)())
"""
    for code, out, err in pair(script):
        assert (code, err) == (0, "") and "found 70000 1 None" in out


def test_an_error_of_the_primary_reaches_everybody_and_is_said_once():
    script = "m.on_primary(lambda: {}['no such key'])()"
    assert [(code, err) for code, _, err in pair(script)] == [(1, "error: 'no such key'"), (1, "")]


def test_what_differs_is_named_with_the_process():
    (code, _, err), other = pair("m.assert_same_on_all_hosts(str(me), 'the config')")
    assert code == 1 and err.startswith("error: the config of process 1 is not that of process 0")
    assert other[0] == 1 and other[2] == ""


HERE = socket.gethostname()
DIES = "ended without a word (killed, or out of memory?), and all others with it; "
DIES += "the same command goes on from here"
FAILURES = {
    "an exception": ("raise ValueError('bad row 7')", "failed, and all others with it: bad row 7"),
    "no memory": ("raise MemoryError('of 9 GB')", "failed, and all others with it: of 9 GB"),
    "the kernel": ("os.kill(os.getpid(), signal.SIGKILL)", DIES),
    "a library": ("os.abort()", DIES),
}


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("which", [0, 1])
def test_where_one_fails_all_end_and_say_which(kind, which):
    """While the other waits for it in a collective, as when it is busy elsewhere."""
    act, told = FAILURES[kind]
    wait = "time.sleep(600)" if kind == "a library" else "m.on_primary(lambda: None)()"
    said = pair(f"m.on_primary(lambda: None)()\nif me == {which}: {act}\n{wait}")
    failed, other = said[which], said[1 - which]
    assert failed[0] != 0
    line = f"error: process {which} on {HERE} {told}"
    if which == 0 and told is DIES:  # JAX's coordinator is in it: now and then JAX speaks too
        assert other[0] != 0 and line in other[2].splitlines()
    else:
        assert (other[0], other[2]) == (1, line)
    if act.startswith("raise"):
        assert (failed[0], failed[2]) == (1, "error: " + act.split("'")[1])


def test_one_that_fails_when_the_other_has_finished():
    (code, _, err), failed = pair("if me: time.sleep(2); raise ValueError('too late')")
    assert code == 1
    assert err == f"error: process 1 on {HERE} failed, and all others with it: too late"
    assert (failed[0], failed[2]) == (1, "error: too late")


def test_a_signal_to_one_ends_both_while_the_primary_works():
    script = """
m.on_primary(lambda: print("ready", flush=True))()
while True:
    m.on_primary(time.sleep)(0.05)
"""

    def stop(running):
        assert any("ready" in line for line in running[0].stdout)
        time.sleep(0.3)
        running[1].send_signal(signal.SIGTERM)

    assert [code for code, *_ in pair(script, stop)] == [75, 75]
