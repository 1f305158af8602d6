"""Small data, and launch.py as a user starts it: in a process of its own."""

import json
import os
import subprocess
import sys
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
        sys.executable, str(ROOT / "launch.py"), f"--config={config}", f"--workdir={workdir}",
        *options,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    """One device in the child, and nothing inherited that tests have set for themselves."""
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}


def launch(workdir, *options, config=TINY, code=0) -> subprocess.CompletedProcess:
    """Runs launch.py to its end and checks its exit code."""
    done = subprocess.run(
        command(workdir, *options, config=config), capture_output=True, text=True, cwd=ROOT,
        env=environment(), timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done
