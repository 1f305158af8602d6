"""Runs an experiment: python launch.py --config=configs/NAME.py --workdir=DIR

The same command again resumes. `--stage=NAME` stops after that stage, `--dry_run` only prints the
plan, `--config.a.b=value` sets any value of the config, `--verbose` shows tracebacks.
"""

import errno
import os
import sys
import traceback
from typing import NoReturn

from taskpgm import interrupts

if __name__ == "__main__":
    interrupts.install()  # first of all: from now on a signal is noted, and every stage looks

from absl import app, flags, logging  # noqa: E402

# Before anything is imported: what libraries would say that no user of this program needs.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # each of its retries, twice
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# XLA's vectors on a CPU, where it has them: the divergences are a third faster, nothing is slower.
os.environ["XLA_FLAGS"] = f"--xla_cpu_prefer_vector_width=512 {os.environ.get('XLA_FLAGS', '')}"

from ml_collections import config_flags  # noqa: E402

CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe, a file of configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where everything is written, and resumed from.")
STAGE = flags.DEFINE_string("stage", None, "The last stage to run; default: all of them.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and its cost, run nothing.")
DEVICE = flags.DEFINE_string(
    "device", None, "With --dry_run: the machine to plan for, as in h100x8, v5e-64 or cpu2."
)
SHARED = flags.DEFINE_bool(
    "shared", False, "Share the workdir with other processes: make what they do not make."
)
UNITS = flags.DEFINE_bool("units", False, "List what can be made apart, and its state.")
ONLY = flags.DEFINE_string("only", None, "Make only this one of --units.")
RAY = flags.DEFINE_string("ray", None, "Workers on Ray: local, or the address of a cluster.")
VERBOSE = flags.DEFINE_bool("verbose", False, "Show tracebacks.")
COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, on many hosts.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes, on many hosts.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"unexpected argument {argv[1]!r}: options start with --")
    for flag in (CONFIG, WORKDIR):
        if flag.value is None:
            raise ValueError(
                f"--{flag.name} is missing, as in:  {str(__doc__).splitlines()[0][20:]}"
            )
    if not VERBOSE.value:
        logging.set_verbosity(logging.WARNING)  # libraries tell much; the stages tell enough
    from taskpgm import stages  # after the flags: --help answers at once

    if RAY.value:
        worker = [a for a in sys.argv[1:] if not a.lstrip("-").startswith("ray=")]
        command = [sys.executable, os.path.abspath(__file__), *worker, "--shared"]
        stages.run_on_ray(RAY.value, command, stages.validate(CONFIG.value).ray)
        return
    stages.run(
        CONFIG.value,
        str(WORKDIR.value),
        last=STAGE.value,
        dry_run=DRY_RUN.value,
        device=DEVICE.value,
        shared=SHARED.value,
        only=ONLY.value,
        units=UNITS.value,
        command=[
            os.path.basename(argument) if i == 0 else argument
            for i, argument in enumerate(sys.argv)
        ],
        distributed=(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value),
    )


def one_line(error: BaseException) -> str:
    """What went wrong, on one line, with the file of an OSError."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" at {error.filename}" if error.filename else ""
        return f"the disk is full{where}: free some space, the same command then goes on"
    text = " ".join(str(error).replace("\\n", " ").split()) or type(error).__name__
    if not isinstance(error, ValueError | OSError | flags.Error):
        text = f"{type(error).__name__}: {text}"
    return text


def parse(argv: list[str]) -> list[str]:
    """Parses flags; a wrong one is one line, not a traceback."""
    try:
        rest = flags.FLAGS(argv)
    except (AttributeError, KeyError):  # a key that the config has not
        from taskpgm import stages

        sys.exit(f"error: {stages.misspelt(argv)}")
    except (flags.Error, TypeError, ValueError, OSError) as error:
        from taskpgm import stages

        sys.exit(f"error: {stages.unreadable(argv) or one_line(error)}")
    if CONFIG.value is not None:
        path = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
        if not os.path.isfile(path):
            sys.exit(f"error: --config={path}: no such file; the recipes are in configs/")
    return rest


def guarded(argv: list[str]) -> None:
    """`main`, but what goes wrong reaches the user as one clear line and exit code 1."""
    try:
        main(argv)
    except SystemExit as ended:
        code = interrupts.exit_code()
        if code is not None and ended.code == code:
            print(interrupts.message(code), file=sys.stderr)
        raise
    except Exception as error:
        if VERBOSE.value:
            traceback.print_exc()
        fail(f"error: {one_line(error)}", 1)


def fail(text: str, code: int) -> NoReturn:
    """Ends this process, and the others that run with it."""
    from taskpgm import stages

    stages.fail(text, code)


if __name__ == "__main__":
    app.run(guarded, flags_parser=parse)
