"""Small data, and launch.py as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

from tests.stages.forks import ROOT, Fork, environment, free_port

LAUNCH = """
import launch
from absl import app

launch.interrupts.install()
app.run(launch.guarded, flags_parser=launch.parse)
"""
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
    `optimised`: compiled as users have it, in a process of its own.
    """
    words = command(workdir, *options, config=config)
    if forked and not optimised:
        fork = start_launch(words, devices)
        said = fork.communicate(timeout)
        assert fork.returncode is not None
        done = subprocess.CompletedProcess(words, fork.returncode, *said)
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


def start_launch(words: list[str], devices: int = 1, before: str = "") -> Fork:
    """Starts a command line of launch.py in a fork, which runs a text of Python before."""
    return Fork(before + LAUNCH, ["launch.py", *words[2:]], {"jax_num_cpu_devices": devices})


def start_pair(
    workdir, *options: str, second: tuple[str, ...] = (), before: str = ""
) -> list[Fork]:
    """Starts launch.py as two processes of one run, two devices each; `second`: options of the
    second process alone; `before`: what it runs first, in Python."""
    together = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    words = [*command(workdir, *options), *together]
    return [
        start_launch([*words, f"--process_id={i}", *second * i], devices=2, before=before * i)
        for i in range(2)
    ]


def end_pair(pair: list[Fork], code: int = 0) -> tuple[str, str]:
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
