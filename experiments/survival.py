"""Does a run that is stopped or killed anywhere end in the same bits?

    python experiments/survival.py signals   # 40 SIGTERM and 20 SIGINT at random moments: minutes
    python experiments/survival.py kills     # SIGKILL before each act of writing: an hour or so

A tiny run of all stages up to `evaluation` (the page is made anew by every run), on one CPU device,
in a process that is forked once all is imported. `signals`: the moment is drawn evenly from the
time of a run, once its handlers stand. It has to end with 75 (SIGTERM) or 130 (SIGINT), without a
traceback. `kills`: each run is killed right before it opens a file for writing, renames, removes,
or makes a folder for the N-th time, for every N. After either the same command is started again,
undisturbed: it has to end with 0, and the contents of every artefact have to be those of a run that
nobody disturbed. Writes experiments/results/survival_signals.json or survival_kills.json, and .md.
"""

import argparse
import hashlib
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from record import header, machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
PACKAGES = ("jax", "flax", "orbax-checkpoint", "transformers")
TINY = (
    "embedded.num_layers=1",
    "embedded.steps=2",
    "embedded.checkpoint_every=1",
    "adapters.min_steps=2",
    "adapters.max_steps=2",
    "affinity.bootstrap=2",
    "train.steps=2",
    "train.checkpoint_every=1",
    "evaluation.exact_match_examples=1",
    "compare=('taskpgm-pmi',)",
)
PROMISED = {"SIGTERM": 75, "SIGINT": 130}
# What is not what a run is for: its clock, its log, what is half done or only saves time.
IGNORED = re.compile(
    r"(^|/)(\.cache|\.groups|owner\.json|metrics\.jsonl|choosing\.json|training|checkpoints)(/|$)"
)
CLOCKS = ("seconds", "date", "duration")


# --- The run --------------------------------------------------------------------------------------
def write_tasks(folder: Path) -> Path:
    """Three tasks of a dozen rows."""
    folder.mkdir()
    for name, answer in {"upper": str.upper, "twice": lambda w: w + w, "size": len}.items():
        words = [f"{name[0]}{'abcdefg'[k % 7] * (1 + k % 3)}{k}" for k in range(12)]
        rows = [json.dumps({"prompt": f"{name} {w}: ", "response": str(answer(w))}) for w in words]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def arguments(data: Path, workdir: Path) -> list[str]:
    """The command line behind `python`."""
    config = [f"--config={ROOT / 'tests' / 'stages' / 'tiny_config.py'}"]
    values = [f"--config.{each}" for each in TINY]
    source = [f"--config.tasks.source={data}", f"--workdir={workdir}"]
    source.append("--stage=evaluation")
    return [str(ROOT / "launch.py"), *config, *values, *source]


def environment(cache: Path) -> dict[str, str]:
    """One CPU device, and every program compiled once for all runs."""
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
    }


def digests(workdir: Path) -> dict[str, str]:
    """A hash of the contents of every artefact, by its path; times are left out."""
    found = {}
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if path.is_dir() and path.name == "weights":
            found[name] = _of_tree(path)
        elif path.is_file() and "/weights/" not in name and not IGNORED.search(name):
            found[name] = hashlib.sha256(_timeless(path, workdir)).hexdigest()[:16]
    return found


def _of_tree(folder: Path) -> str:
    """The names of a checkpoint's files are random: its arrays count."""
    import jax
    import orbax.checkpoint.experimental.v1 as ocp

    warnings.filterwarnings("ignore", module=r"orbax\.")
    digest = hashlib.sha256()
    tree: Any = ocp.load(str(folder))
    for where, array in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(f"{where} {array.dtype} {array.shape}".encode() + bytes(array))
    return digest.hexdigest()[:16]


def _timeless(path: Path, workdir: Path) -> bytes:
    """A file without the times and the place of this very run."""
    data = path.read_bytes().replace(str(workdir).encode(), b"WORKDIR")
    if path.suffix == ".json":
        return json.dumps(_without_clocks(json.loads(data)), sort_keys=True).encode()
    if path.suffix == ".html":
        return re.sub(rb"\d+(\.\d+)? (s|min|h)\b", b"", data)
    return data


def _without_clocks(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_clocks(each) for key, each in value.items() if key not in CLOCKS}
    return [_without_clocks(each) for each in value] if isinstance(value, list) else value


def difference(workdir: Path, expected: dict[str, str]) -> list[str]:
    """The artefacts that are not as they would be had nobody disturbed the run."""
    found = digests(workdir)
    return sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))


def left_behind(workdir: Path) -> list[str]:
    """What no run should leave: files under names for what is not whole."""
    sys.path.insert(0, str(ROOT))
    from taskpgm.artefact import LEFTOVERS

    return sorted(str(p) for pattern in LEFTOVERS for p in workdir.rglob(pattern))


# --- Children -------------------------------------------------------------------------------------
def prepare(folder: Path) -> Path:
    """Imports what a run imports, without touching a device, so that forked runs start at once;
    returns the folder of the tasks."""
    os.environ.update(environment(folder / "cache"))
    sys.path.insert(0, str(ROOT))
    warnings.filterwarnings("ignore", message=r".*os\.fork\(\) was called")
    import orbax.checkpoint  # noqa: F401
    import tokenizers  # noqa: F401
    import transformers  # noqa: F401

    import taskpgm.stages  # noqa: F401

    return write_tasks(folder / "data")


def fork(work: Callable[[], Any]) -> int:
    """The process id of a child that does `work` and ends."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """The exit code of a child, once it has ended; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def launch(data: Path, workdir: Path, log: Path, kill_at: int = 0) -> int:
    """Runs launch.py in a child; its process id."""

    def work() -> None:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = arguments(data, workdir)
        count = count_writes(workdir, kill_at, log.with_suffix(".act"))
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        finally:
            log.with_suffix(".count").write_text(str(len(count)))

    return fork(work)


def undisturbed(data: Path, folder: Path) -> tuple[dict[str, str], float, int]:
    """The digests of a run that nobody disturbs, its seconds, and its acts of writing. It is the
    second of two, which have to end in the same bits, and finds all programs compiled."""
    found, begin = {}, 0.0
    for name in ("first", "second"):
        begin, log = time.monotonic(), folder / f"{name}.log"
        assert ended(launch(data, folder / name / "run", log)) == 0, log.read_text()
        seconds = time.monotonic() - begin
        found[name] = checked(folder / name / "run", folder / f"{name}.json", {})
    differ = [k for k in found["second"] if found["first"].get(k) != found["second"][k]]
    assert not differ, f"two undisturbed runs differ in {differ}"
    return found["second"], seconds, int((folder / "second.count").read_text())


def checked(workdir: Path, file: Path, expected: dict[str, str]) -> dict[str, Any]:
    """Digests of a workdir (without `expected`), or what differs; in a child, since reading
    checkpoints starts threads, and what forks must have none."""

    def work() -> None:
        found: Any = digests(workdir)
        if expected:
            found = {"differs": difference(workdir, expected) + left_behind(workdir)}
        file.write_text(json.dumps(found))

    assert ended(fork(work)) == 0
    return json.loads(file.read_text())


def rerun(data: Path, workdir: Path, log: Path, expected: dict[str, str]) -> dict[str, Any]:
    """The same command again: how it ends, and what is not as if nobody had disturbed it."""
    code = ended(launch(data, workdir, log))
    differs = checked(workdir, log.with_suffix(".json"), expected)["differs"]
    if code or differs:
        print(workdir, code, differs, log.read_text()[-1500:], flush=True)
    subprocess.run(["rm", "-rf", workdir.parent], check=True)
    return {"code of the rerun": code, "differs": differs}


# --- Signals --------------------------------------------------------------------------------------
def handlers_stand(pid: int) -> bool:
    """Whether a process catches SIGTERM."""
    try:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return False
    return caught is not None and bool(int(caught.group(1), 16) >> (signal.SIGTERM - 1) & 1)


def signals(counts: dict[str, int], folder: Path, seed: int, limit: float) -> dict[str, Any]:
    """Sends so many of each signal, one to a run."""
    data = prepare(folder)
    expected, whole, _ = undisturbed(data, folder)
    draw, rows, begin = random.Random(seed), [], time.monotonic()
    wanted = [name for name, count in counts.items() for _ in range(count)]
    draw.shuffle(wanted)
    while wanted and time.monotonic() - begin < limit:
        name, number = wanted[-1], len(rows)
        workdir, log = folder / f"{number}" / "run", folder / f"{number}.log"
        pid = launch(data, workdir, log)
        while not handlers_stand(pid):
            time.sleep(0.001)
        moment = draw.uniform(0, whole)
        time.sleep(moment)
        if os.waitpid(pid, os.WNOHANG)[0]:  # it had ended: another moment
            subprocess.run(["rm", "-rf", workdir.parent, log], check=True)
            continue
        os.kill(pid, getattr(signal, name))
        sent, code = time.monotonic(), ended(pid)
        took, said = time.monotonic() - sent, log.read_text()
        dump = any(word in said for word in ("Traceback", "Exception ignored", "Fatal"))
        row = {"signal": name, "after": round(moment, 2), "code": code, "took": round(took, 2)}
        rows.append(row | {"dump": dump} | rerun(data, workdir, log, expected))
        if code != PROMISED[name] or dump:
            print(row, said[-1500:], flush=True)
        wanted.pop()
    return {"undisturbed run, seconds": round(whole, 1), "not sent": len(wanted), "runs": rows}


def signals_report(result: dict[str, Any]) -> list[str]:
    lines = [
        "| signal | sent | exit codes | a dump | rerun ends with 0 | same bits | longest end |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in PROMISED:
        rows = [row for row in result["runs"] if row["signal"] == name]
        codes = Counter(row["code"] for row in rows)
        cells = [
            name,
            len(rows),
            ", ".join(f"{n} x {code}" for code, n in codes.items()),
            sum(row["dump"] for row in rows),
            sum(row["code of the rerun"] == 0 for row in rows),
            sum(not row["differs"] for row in rows),
            f"{max((row['took'] for row in rows), default=0.0):.1f} s",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    whole = result["undisturbed run, seconds"]
    return [*lines, "", f"Moments are drawn evenly from {whole} s, what an undisturbed run takes."]


# --- Kills ----------------------------------------------------------------------------------------
REMOVALS = ("os.remove", "os.rmdir")  # inside shutil.rmtree their paths are relative
WRITES = (*REMOVALS, "os.rename", "os.link", "os.mkdir", "os.truncate", "shutil.rmtree")


def count_writes(workdir: Path, kill_at: int, told: Path) -> list[str]:
    """From now on counts this process's acts of writing in `workdir`; right before the one of the
    number `kill_at` it notes in `told` what that was, and kills itself. The list is of all acts."""
    acts: list[str] = []
    root = str(workdir)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = given
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in WRITES:
            path = given[0]
        else:
            return
        if not isinstance(path, str | bytes | os.PathLike) or "/.cache/" in os.fsdecode(path):
            return
        path = os.fsdecode(path)
        if event not in REMOVALS and not os.path.abspath(path).startswith(root):
            return
        acts.append(f"{event} {path.removeprefix(root)}")
        if len(acts) == kill_at:
            note = os.open(told, os.O_WRONLY | os.O_CREAT)
            os.write(note, acts[-1].encode())
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return acts


def kills(first: int, every: int, folder: Path, limit: float) -> dict[str, Any]:
    """Kills a run before its act of writing number `first`, the next before `every` acts more."""
    data = prepare(folder)
    expected, whole, total = undisturbed(data, folder)
    print(f"{whole:.1f} s, {total} acts of writing", flush=True)
    rows, begin, at = [], time.monotonic(), first
    while time.monotonic() - begin < limit:
        workdir, log = folder / f"{at}" / "run", folder / f"{at}.log"
        code = ended(launch(data, workdir, log, kill_at=at))
        if code == 0:
            break  # it makes fewer acts of writing than that
        act = log.with_suffix(".act")
        row = {"before write": at, "code": code, "act": act.read_text() if act.exists() else ""}
        rows.append(row | rerun(data, workdir, log, expected))
        at += every
    return {"first": first, "every": every, "acts of writing": total, "runs": rows}


def kills_report(result: dict[str, Any]) -> list[str]:
    rows = result["runs"]
    kinds = Counter(row["act"].split()[0] for row in rows if row["act"])
    same = sum(not row["code of the rerun"] and not row["differs"] for row in rows)
    lines = [
        f"- killed right before an act of writing: {len(rows)} runs, from write {result['first']}, "
        f"every {result['every']}; an undisturbed run makes {result['acts of writing']} such acts",
        f"- of these: {', '.join(f'{n} {kind}' for kind, n in kinds.most_common())}",
        f"- the same command then ends with 0 and in the same bits: {same} of {len(rows)}",
    ]
    return lines + [
        f"- not so: {row}" for row in rows if row["code of the rerun"] or row["differs"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("signals", "kills"))
    parser.add_argument("--sigterm", type=int, default=40, help="how many of them")
    parser.add_argument("--sigint", type=int, default=20, help="how many of them")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--first", type=int, default=1, help="kills: the first write")
    parser.add_argument("--every", type=int, default=1, help="kills: so many writes apart")
    parser.add_argument(
        "--limit", type=float, default=1e9, help="seconds after which no more are tried"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        if given.what == "signals":
            counts = {"SIGTERM": given.sigterm, "SIGINT": given.sigint}
            result = signals(counts, folder, given.seed, given.limit)
            lines = signals_report(result)
        else:
            result = kills(given.first, given.every, folder, given.limit)
            lines = kills_report(result)
    title = {"signals": "Signals at random moments", "kills": "Kills before each act of writing"}
    about = machine(PACKAGES)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"survival_{given.what}"
    text = json.dumps({"machine": about, **result}, indent=1)
    path.with_suffix(".json").write_text(text + "\n")
    report = "\n".join([*header(title[given.what], about), "", *lines]) + "\n"
    path.with_suffix(".md").write_text(report)
    print(report)


if __name__ == "__main__":
    main()
