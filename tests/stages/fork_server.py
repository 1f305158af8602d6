"""Runs launch.py in forks of one process that has imported what a run imports: seconds less each.

For each line of stdin, a request in JSON, a line of stdout has the process id of the run, and the
next one its exit code. Nothing here starts a backend of JAX: its threads would not be in the forks.
"""

import gc
import json
import os
import sys
from importlib import import_module
from typing import Any

from absl import app

import launch  # before all others, as it sets what they read when they are imported

PRELOADED = ("taskpgm.stages", "jinja2", "matplotlib.figure", "matplotlib.backends.backend_agg")


def run(options: list[str], settings: dict[str, Any], stdout: str, stderr: str) -> None:
    """What `python launch.py OPTIONS` does, with these settings of JAX; ends this process."""
    import jax

    for number, path in enumerate((os.devnull, stdout, stderr)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    for name, value in settings.items():
        jax.config.update(name, value)
    sys.argv = ["launch.py", *options]
    launch.interrupts.install()
    app.run(launch.guarded, flags_parser=launch.parse)


def main() -> None:
    for name in PRELOADED:
        import_module(name)
    from transformers import PreTrainedTokenizerFast  # noqa: F401

    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(**json.loads(line))
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
