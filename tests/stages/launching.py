"""Small data, and launch.py as a user starts it."""

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "stages" / "tiny_config.py"

# One program text per task, so that models can tell them apart after a few steps.
ANSWERS = {
    "upper": lambda w: w.upper(),
    "shout": lambda w: w.upper() + "!",
    "reverse": lambda w: w[::-1],
    "length": lambda w: str(len(w)),
}


def write_tasks(folder: Path, rows: int = 12) -> Path:
    """A folder of JSONL files, one per task."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, answer) in enumerate(ANSWERS.items()):
        words = [f"w{'abcdefghij'[k % 10] * (1 + k % 3)}{k}{name[0]}" for k in range(rows + number)]
        lines = [json.dumps({"prompt": f"{name} {w}: ", "response": answer(w)}) for w in words]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def command(workdir, *options, config=TINY) -> list[str]:
    """The command line of a run."""
    return [
        sys.executable,
        str(ROOT / "launch.py"),
        f"--config={config}",
        f"--workdir={workdir}",
        *options,
    ]


def environment(devices: int = 1, optimised: bool = False) -> dict[str, str]:
    """Environment of a child process with this many devices, without the tests' own settings."""
    own = ("SLURM", "XLA_FLAGS", "TF_CPP_MIN_LOG_LEVEL", "PYTEST")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    return inherited | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        # Most of a small run's time is compilation.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(not optimised)),
    }


def launch(
    workdir,
    *options,
    config=TINY,
    code=0,
    devices=1,
    optimised=False,
    timeout=300,
    forked=True,
) -> subprocess.CompletedProcess:
    """Runs launch.py to its end and checks its exit code.

    `forked`: in a fork of a process that has imported everything, and not in one of its own.
    """
    words = command(workdir, *options, config=config)
    if forked:
        settings = {
            "jax_num_cpu_devices": devices,
            "jax_disable_most_optimizations": not optimised,
        }
        done = run_fork(words, settings, timeout)
    else:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=environment(devices, optimised),
            timeout=timeout,
        )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@functools.cache
def fork_server() -> subprocess.Popen:
    """fork_server.py for all runs of this process of pytest, and ended with it."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.stages.fork_server"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    atexit.register(server.communicate)
    return server


def run_fork(words: list[str], settings: dict, timeout: float) -> subprocess.CompletedProcess:
    """Runs a command line of launch.py in a fork, which is killed after `timeout` seconds."""
    server = fork_server()
    assert server.stdin and server.stdout
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "stdout"), Path(folder, "stderr")
        request = {"options": words[2:], "settings": settings}
        request |= {"stdout": str(said[0]), "stderr": str(said[1])}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        child = int(server.stdout.readline())
        late = threading.Timer(timeout, os.kill, (child, signal.SIGKILL))
        late.start()
        try:
            code = int(server.stdout.readline())
        finally:
            late.cancel()
        return subprocess.CompletedProcess(words, code, *(path.read_text() for path in said))


def start_pair(workdir, *options: str, second: tuple[str, ...] = ()) -> list[subprocess.Popen]:
    """Starts launch.py as two processes of one run, two devices each; `second`: options of the
    second process alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"--coordinator=localhost:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            [*command(workdir, *options), coordinator, "--num_processes=2", f"--process_id={i}"]
            + [*second] * i,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=environment(2),
        )
        for i in range(2)
    ]


def end_pair(pair: list[subprocess.Popen], code: int = 0) -> tuple[str, str]:
    """Waits for both, and checks their exit codes and that only the first has printed anything.

    Returns what it has printed, on stdout and on stderr.
    """
    try:
        said = [[own_lines(text) for text in process.communicate(timeout=300)] for process in pair]
    finally:
        for process in pair:
            process.kill()
    assert [process.returncode for process in pair] == [code, code], said
    assert said[1] == ["", ""], said[1]
    return said[0][0], said[0][1]


def own_lines(text: str) -> str:
    """The text without lines of Gloo, which connects processes on CPUs."""
    lines = [line for line in text.splitlines() if "Gloo" not in line and "peer ranks" not in line]
    return "\n".join(lines).strip()
