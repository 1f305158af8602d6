"""A suite of 72 real tasks, and tasks of BIG-Bench Hard to judge by, made from PyPI alone.

    python experiments/real/tasks.py OUT                                   # fetches 360 MB
    python experiments/real/tasks.py OUT --archive bigbench-1.0.0.tar.gz   # already fetched

The package `bigbench` (Apache-2.0, the BIG-bench authors) is pinned by version and SHA-256. A row
is the task's input, its options where there are at most MOST_OPTIONS, and `Answer:`; the response
is the first right answer. Written are, as JSONL with the fields `prompt` and `response`:

  OUT/suite/FAMILY/TASK.jsonl, .heldout.jsonl, .test.jsonl   at most 600, 60 and 60 rows
  OUT/bbh/TASK.jsonl                                         at most 250 rows, to judge only
  OUT/suite.json                                             the pins, rows and SHA-256 of each file

The split of a row is decided by a hash of its input, so no input stands in two splits, in one task
or in two: a test sentence of `multiemo-all_sentence_en` is no training sentence of another task.
The families (families.py) are named by what one has to do; no method of the study sees them but
those that say so.
"""

import argparse
import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from families import JUDGES, SUITE
from package import check, download

PACKAGE = "bigbench==1.0.0"
PACKAGE_SHA256 = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
ROOT = "bigbench-1.0.0/bigbench/benchmark_tasks/"
MOST_OPTIONS = 8
MOST_BYTES, MOST_BYTES_BBH = 400, 1000  # of prompt and response: byte-level tokens are fewer
TRAIN, JUDGE, BBH_ROWS = 600, 60, 250
SHARE = 1 / 6  # of a task's inputs that held-out rows, and test rows, may come from


def unit(text: str) -> float:
    """A number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def right_answer(example: Mapping[str, Any]) -> str | None:
    """The answer of the highest score, or the first target; None where two share that score."""
    scores = example.get("target_scores")
    if scores:
        best = [answer for answer, score in scores.items() if score == max(scores.values())]
        return best[0].strip() if len(best) == 1 else None
    target = example.get("target", "")
    return (target[0] if isinstance(target, list) else target).strip() or None


def row_of(example: Mapping[str, Any], prefix: str, most_bytes: int) -> dict[str, str] | None:
    """A row as it is trained on; None for one that has no single answer or is too long."""
    text, answer = example["input"].strip(), right_answer(example)
    if not text or answer is None:
        return None
    options = [option.strip() for option in example.get("target_scores") or ()]
    prompt = f"{prefix}{text}\n"
    if 0 < len(options) <= MOST_OPTIONS:
        # In an order of its own for each row, the same every time.
        seed = int(unit(text) * 2**32)
        order = np.random.default_rng(seed).permutation(len(options))
        prompt += f"Options: {'; '.join(options[i] for i in order)}\n"
    row = {"prompt": f"{prompt}Answer:", "response": f" {answer}"}
    return row if len("".join(row.values()).encode()) <= most_bytes else None


def rows_of(
    task: Mapping[str, Any], *, most_bytes: int, with_prefix: bool = False
) -> list[tuple[float, dict[str, str]]]:
    """Rows with different inputs, in the order of their inputs' hashes, which come along."""
    prefix = task.get("task_prefix", "").strip() if with_prefix else ""
    rows: dict[str, tuple[float, dict[str, str]]] = {}
    for example in task["examples"]:
        row = row_of(example, prefix and f"{prefix}\n", most_bytes)
        if row is not None:
            text = " ".join(example["input"].split())
            rows.setdefault(text, (unit(text), row))
    return sorted(rows.values(), key=lambda pair: pair[0])


def splits(rows: list[tuple[float, dict[str, str]]]) -> dict[str, list[dict[str, str]]]:
    """Test rows have the lowest hashes, held-out rows the next, training rows the rest."""
    test = [row for at, row in rows if at < SHARE]
    heldout = [row for at, row in rows if SHARE <= at < 2 * SHARE]
    train = [row for at, row in rows if at >= 2 * SHARE]
    return {"": train[:TRAIN], ".heldout": heldout[:JUDGE], ".test": test[:JUDGE]}


def files(tasks: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Every file of OUT, by its path there, and its rows; `tasks` by their paths in the package."""
    for family, members in SUITE.items():
        for path, name in members.items():
            rows = rows_of(tasks[path], most_bytes=MOST_BYTES)
            for split, part in splits(rows).items():
                yield f"suite/{family}/{name}{split}.jsonl", part
    for path, name in JUDGES.items():
        rows = rows_of(tasks[path], most_bytes=MOST_BYTES_BBH, with_prefix=True)
        yield f"bbh/{name}.jsonl", [row for _, row in rows[:BBH_ROWS]]


def read_archive(path: Path) -> dict[str, Any]:
    """The tasks of the suite and of BIG-Bench Hard in the package's file, in one pass.

    Raises:
      SystemExit: one of them is not in it.
    """
    wanted = {path for members in SUITE.values() for path in members} | set(JUDGES)
    found: dict[str, Any] = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            name = member.name.removeprefix(ROOT).removesuffix("/task.json")
            if member.name == f"{ROOT}{name}/task.json" and name in wanted:
                file: Any = archive.extractfile(member)
                found[name] = json.load(file)
    if missing := sorted(wanted - found.keys()):
        raise SystemExit(f"error: {path}: no {ROOT}{missing[0]}/task.json in it")
    return found


def write(out: Path, tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Writes all files; what they hold, by path."""
    listed = {}
    for name, rows in files(tasks):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        content = "".join(lines).encode()
        path.write_bytes(content)
        listed[name] = {"rows": len(rows), "sha256": hashlib.sha256(content).hexdigest()}
    return listed


def main(out: Path, archive: Path | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = archive or download(PACKAGE, PACKAGE_SHA256, Path(folder))
        tasks = read_archive(check(path, PACKAGE_SHA256))
    listed = write(out, tasks)
    pins = {"package": PACKAGE, "sha256": PACKAGE_SHA256}
    (out / "suite.json").write_text(json.dumps(pins | {"files": listed}, indent=1) + "\n")
    rows = sum(each["rows"] for each in listed.values())
    count = sum(map(len, SUITE.values()))
    print(
        f"{out}: {count} tasks of {len(SUITE)} families, {len(JUDGES)} to judge by, {rows:,} rows"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--archive", type=Path, help="the package's file, already fetched")
    arguments = parser.parse_args()
    main(arguments.out, arguments.archive)
