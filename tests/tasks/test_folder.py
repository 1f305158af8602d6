"""Which files of a folder are one task, which are its splits, and the note of files not read."""

import gzip
import json

import pytest

from taskpgm.tasks import load_tasks


def write(path, word="q", count=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"prompt": f"{word}{i}", "response": f"a{i}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def by_name(tasks):
    return {task.name: task for task in tasks}


def one_line(spec, error=ValueError):
    with pytest.raises(error) as caught:
        load_tasks(spec)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("split", ["heldout", "validation", "valid", "val", "dev", "test", "Test"])
def test_a_split_by_its_files_name_is_no_task(tmp_path, split):
    write(tmp_path / "a.jsonl")
    write(tmp_path / f"a.{split}.jsonl", "other", 2)
    write(tmp_path / "b.jsonl")
    tasks = by_name(load_tasks(tmp_path))
    assert set(tasks) == {"a", "b"}
    rows = tasks["a"].test if split.lower() == "test" else tasks["a"].heldout
    assert [row.prompt for row in rows] == ["other0\n", "other1\n"]


def test_files_called_after_splits_are_one_task_of_their_folder(tmp_path):
    for split in ("train", "validation", "test"):
        write(tmp_path / "family" / "a" / f"{split}.jsonl", split)
    write(tmp_path / "b.train.jsonl")
    write(tmp_path / "b.test.csv").write_text("prompt,response\nx,y\n")
    tasks = by_name(load_tasks(tmp_path))
    assert {task.name: task.family for task in tasks.values()} == {"a": "family", "b": "b"}
    assert tasks["a"].test[0].prompt == "test0\n" and len(tasks["a"].heldout) == 9
    assert [row.prompt for row in tasks["b"].test] == ["x\n"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.test.jsonl"], "a.test.jsonl: a test split without its training file"),
        (["a.dev.csv"], "a.dev.csv: a heldout split without its training file"),
        (["x/test.jsonl"], "x/test.jsonl: a test split without its training file"),
        (["a.jsonl", "a_test.jsonl"], "a_test.jsonl: looks like a split of a: call it a.test.jso"),
        (["a.jsonl", "a-dev.jsonl"], "a-dev.jsonl: looks like a split of a: call it a.dev.jsonl"),
        (["a.jsonl", "a.csv"], "a.jsonl: a.csv next to it is the same split"),
        (["a.jsonl", "a.dev.jsonl", "a.val.jsonl"], "a.val.jsonl: a.dev.jsonl next to it is the"),
        (["train-00000-of-00002.jsonl"], "one of several shards of a data set"),
    ],
)
def test_names_that_could_be_trained_on_by_mistake_are_refused(tmp_path, names, message):
    for name in ("b.jsonl", "c.jsonl", *names):
        write(tmp_path / name)
    assert message in one_line(tmp_path)


def test_what_is_not_read_is_said(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name)
    for name in ("README.md", "x.txt", "y.arrow", "sub/z.jsonl.zst"):
        write(tmp_path / name)
    notes = [note for task in load_tasks(tmp_path) for note in task.notes if "not read" in note]
    assert len(notes) == 1 and notes[0].endswith("README.md, sub/z.jsonl.zst, x.txt, y.arrow")
    for i in range(20):
        write(tmp_path / f"more{i:02}.txt")
    (note,) = (n for task in load_tasks(tmp_path) for n in task.notes if "not read" in n)
    assert note.endswith("and 16 more")


def test_links_are_followed_and_those_to_nothing_refused(tmp_path):
    other = tmp_path / "elsewhere"
    write(other / "y.jsonl")
    data = tmp_path / "data"
    write(data / "a.jsonl")
    (data / "family").symlink_to(other)
    (data / "b.jsonl").symlink_to(write(tmp_path / "file.jsonl"))
    (data / "around").symlink_to(data)
    (other / "back").symlink_to(data)
    tasks = by_name(load_tasks(data))
    assert {task.name: task.family for task in tasks.values()} == {
        "a": "a",
        "b": "b",
        "y": "family",
    }
    (data / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    assert one_line(data).startswith(f"{data}/gone.jsonl: a link to a file that does not exist")


@pytest.mark.parametrize(
    "name",
    ["cost_$5_$", "a$b^$", "naïve", "日本", "🎈", "a b", "tab\there", "line\nbreak", "%s", "{x}"],
)
def test_names_may_hold_anything_that_a_folder_may(tmp_path, name):
    write(tmp_path / f"{name}.jsonl")
    write(tmp_path / "b.jsonl")
    assert name in by_name(load_tasks(tmp_path))
    (tmp_path / f"{name}.jsonl").write_text("{")
    assert ".jsonl:1: malformed JSON" in one_line(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/b", "cannot name a folder"),
        ("..", "cannot name a folder"),
        (" ", "cannot name a folder"),
        ("a\0b", "cannot name a folder"),
        ("x" * 300, "is longer than 200 bytes"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_names_that_no_folder_can_have_are_refused(tmp_path, name, message):
    entry = {"source": str(write(tmp_path / "a.jsonl"))}
    line = one_line({"tasks": [{**entry, "name": name}, {**entry, "name": "b"}]})
    assert message in line and line.isprintable()


def test_names_that_differ_by_composition_alone_are_one(tmp_path):
    write(tmp_path / "caf\u00e9.jsonl")
    write(tmp_path / "cafe\u0301.jsonl")
    assert "duplicate task name" in one_line(tmp_path)


def test_a_split_by_column_and_by_file_are_not_mixed(tmp_path):
    rows = [{"prompt": str(i), "response": "r", "split": "test"} for i in range(3)]
    rows += [{"prompt": str(i), "response": "r", "split": "train"} for i in range(3, 9)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path / "a.test.jsonl")
    write(tmp_path / "b.jsonl")
    assert "a.test.jsonl: rows of a.jsonl are marked test as well" in one_line(tmp_path)


def test_compressed_and_other_files_of_one_folder(tmp_path):
    text = write(tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "b.test.JSONL").write_bytes(text.replace(b"q", b"t"))
    (tmp_path / "c.json").write_text(json.dumps([json.loads(x) for x in text.splitlines()]))
    tasks = by_name(load_tasks(tmp_path))
    assert set(tasks) == {"a", "b", "c"} and len(tasks["b"].test) == 9
