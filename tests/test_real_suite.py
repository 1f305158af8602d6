"""The suite of the real study, made from a small stand-in of its package."""

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from taskpgm.tasks import load_tasks
from tests.scripts import EXPERIMENTS, script

REAL = EXPERIMENTS / "real"
EXAMPLES = 240
SHARED = {f"The same sentence, number {i}." for i in range(EXAMPLES // 2)}


@pytest.fixture(scope="module")
def real():
    with script(REAL / "tasks.py") as module:
        yield module


def example(path: str, i: int) -> dict:
    """Choices in half of the tasks; half of the inputs of every task stand in all of them."""
    text = f"The same sentence, number {i}." if i % 2 else f"{path} asks {i}: "
    if len(path) % 2:
        return {"input": text, "target_scores": {"yes": float(i % 3 == 0), "no": float(i % 3 > 0)}}
    return {"input": text, "target": [f"answer {i}", "another"] if i % 4 else f" answer {i} "}


ODD = [
    {"input": "Two are right.", "target_scores": {"one": 1, "two": 1, "three": 0}},
    {"input": "long " * 300, "target": "too long"},
    {"input": "  ", "target": "nothing was asked"},
    {"input": "Nothing is right.", "target": ""},
]


@pytest.fixture(scope="module")
def archive(real, tmp_path_factory):
    """A package of the tasks that are wanted, with a checksum of its own."""
    path = tmp_path_factory.mktemp("package") / "package.tar.gz"
    paths = [*(p for members in real.SUITE.values() for p in members), *real.JUDGES, "not_wanted"]
    with tarfile.open(path, "w:gz", compresslevel=1) as file:
        for name in paths:
            examples = [example(name, i // 2) for i in range(2 * EXAMPLES)]  # each of them twice
            task = {"task_prefix": "Read this. ", "examples": examples + ODD}
            content = json.dumps(task).encode()
            entry = tarfile.TarInfo(f"{real.ROOT}{name}/task.json")
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "PACKAGE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
        yield path


@pytest.fixture(scope="module")
def out(real, archive, tmp_path_factory) -> Path:
    """What the script makes of the package."""
    folder = tmp_path_factory.mktemp("out")
    real.main(folder, archive)
    return folder


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_suite_is_what_the_package_holds(real, out):
    tasks = load_tasks(str(out / "suite"), seed=0)
    names = {n: family for family, members in real.SUITE.items() for n in members.values()}
    # A task is named by its family and its own name.
    assert {t.name.split("/")[-1]: t.family for t in tasks} == names
    for task in tasks:
        sizes = len(task.train), len(task.heldout), len(task.test)
        assert sum(sizes) <= EXAMPLES
        # A sixth of the inputs each, whichever they are, and no more than 60.
        assert 10 <= sizes[1] <= 60 and 10 <= sizes[2] <= 60 and sizes[0] > 100, task.name
    pins = json.loads((out / "suite.json").read_text())
    assert pins["package"] == "bigbench==1.0.0"
    for name, said in pins["files"].items():
        content = (out / name).read_bytes()
        assert said == {
            "rows": content.count(b"\n"),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    files = {str(p.relative_to(out)) for p in out.rglob("*.jsonl")}
    assert files == pins["files"].keys()


def test_no_input_stands_in_two_splits_of_any_tasks(out):
    split_of: dict[str, set[str]] = {}
    for path in (out / "suite").rglob("*.jsonl"):
        split = path.name.split(".")[1]
        for row in read(path):
            split_of.setdefault(row["prompt"].splitlines()[0], set()).add(split)
    shared = {text: where for text, where in split_of.items() if text in SHARED}
    assert len(shared) >= 60  # tasks do share inputs here
    assert all(len(where) == 1 for where in split_of.values())


def test_rows_have_the_right_answer_and_their_options(out):
    rows = read(out / "suite" / "judgement" / "winowhy.jsonl")  # 7 letters: it has choices
    assert {row["prompt"].splitlines()[1] for row in rows} == {
        "Options: yes; no",
        "Options: no; yes",
    }
    for row in rows:
        text = row["prompt"].splitlines()[0]
        number = int(text.split()[-1].rstrip(".:"))
        assert row["response"] == (" yes" if number % 3 == 0 else " no")
        assert row["prompt"].endswith("\nAnswer:") and text == text.strip()
    odd = {example["input"].strip() for example in ODD}
    assert not {row["prompt"].splitlines()[0] for row in rows} & odd
    judged = read(out / "bbh" / "hyperbaton.jsonl")  # with what the task says of itself
    assert all(row["prompt"].startswith("Read this.\n") for row in judged)
    assert all(row["response"].startswith(" answer") for row in judged)


def test_the_same_package_gives_the_same_files(real, archive, out, tmp_path):
    real.main(tmp_path, archive)
    assert (tmp_path / "suite.json").read_bytes() == (out / "suite.json").read_bytes()


@pytest.mark.parametrize(
    ("content", "said"), [(b"another file", "has SHA-256"), (None, "no such file")]
)
def test_another_file_is_refused_in_one_line(content, said, tmp_path):
    path = tmp_path / "bigbench.tar.gz"
    if content is not None:
        path.write_bytes(content)
    command = [sys.executable, REAL / "tasks.py", tmp_path / "out", "--archive", path]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stderr.startswith(f"error: {path}") and said in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_package_that_lacks_a_task_is_named(real, tmp_path, monkeypatch):
    path = tmp_path / "empty.tar.gz"
    tarfile.open(path, "w:gz").close()
    monkeypatch.setattr(real, "PACKAGE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(SystemExit, match=r"no bigbench-1\.0\.0/.*/task\.json"):
        real.main(tmp_path / "out", path)
