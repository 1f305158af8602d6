"""Every format and row schema that can be read, and one clear line for anything else."""

import json
import re

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from taskpgm.tasks import Example, load_tasks


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def plain(count, word="q"):
    return [{"prompt": f"{word}{i}?", "response": f"a{i}"} for i in range(count)]


def one_line(path_or_spec, error=ValueError, **options):
    """The message of the error that loading raises, which must be a single line."""
    with pytest.raises(error) as caught:
        load_tasks(path_or_spec, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_disjoint(task):
    prompts = [{row.context for row in rows} for rows in (task.train, task.heldout, task.test)]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])


def by_name(tasks):
    return {task.name: task for task in tasks}


def test_a_folder_of_jsonl_and_parquet_with_families(tmp_path):
    write(tmp_path / "alone.jsonl", plain(20))
    write(tmp_path / "logic" / "b.parquet", plain(10))
    write(tmp_path / "logic" / "deep" / "c.jsonl", plain(10))
    write(tmp_path / "logic" / "b.heldout.jsonl", plain(3, "held"))
    write(tmp_path / "logic" / "b.test.jsonl", plain(2, "test"))
    (tmp_path / "README.md").write_text("ignored")
    write(tmp_path / ".hidden" / "d.jsonl", plain(10))
    tasks = by_name(load_tasks(tmp_path))
    assert {task.name: task.family for task in tasks.values()} == {
        "alone": "alone",
        "b": "logic",
        "c": "logic/deep",
    }
    assert tasks["b"].train[0] == Example("q0?\n", "a0")
    assert [row.prompt for row in tasks["b"].heldout] == ["held0?\n", "held1?\n", "held2?\n"]
    assert [row.prompt for row in tasks["b"].test] == ["test0?\n", "test1?\n"]
    assert len(tasks["b"].train) == 10 and tasks["b"].notes == ()
    assert tasks["alone"].notes[0].endswith(": README.md")
    assert load_tasks(str(tmp_path)) == load_tasks(tmp_path)


def test_a_missing_heldout_split_is_cut_off_and_said(tmp_path):
    rows = plain(30) + plain(10)  # ten prompts come twice
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "b.jsonl", plain(3))
    a, b = load_tasks(tmp_path, heldout_fraction=0.25, seed=1)
    assert len(a.train + a.heldout + a.test) == 40 and 10 <= len(a.heldout) <= 11
    assert 4 <= len(a.test) <= 5
    assert_disjoint(a)
    assert a.notes == (
        f"no held-out split: {len(a.heldout)} of 40 rows cut off (fraction 0.25, seeded)",
        f"no test split: {len(a.test)} of 40 rows cut off (fraction 0.1, seeded)",
    )
    assert (len(b.train), len(b.heldout), len(b.test)) == (1, 1, 1)
    again = load_tasks(tmp_path, heldout_fraction=0.25, seed=1)
    assert [task.content_hash for task in again] == [a.content_hash, b.content_hash]
    other = load_tasks(tmp_path, heldout_fraction=0.25, seed=2)[0]
    assert other.content_hash != a.content_hash
    # Another task's coming or going changes nothing.
    write(tmp_path / "0.jsonl", plain(5))
    assert load_tasks(tmp_path, heldout_fraction=0.25, seed=1)[1] == a


def test_a_split_column_says_which_rows_are_of_which_split(tmp_path):
    marks = ("train", "heldout", "test", "train", "validation", "Test")
    rows = [{**row, "split": mark} for row, mark in zip(plain(6), marks, strict=True)]
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "b.parquet", rows)
    for task in load_tasks(tmp_path):
        assert [row.response for row in task.train] == ["a0", "a3"]
        assert [row.response for row in task.heldout] == ["a1", "a4"]
        assert [row.response for row in task.test] == ["a2", "a5"]
    write(tmp_path / "a.jsonl", [*rows, {**rows[0], "split": "maybe"}])
    assert one_line(tmp_path) == (
        f"{tmp_path}/a.jsonl:7: `split` is 'maybe': it must be 'train', 'heldout' or 'test'"
    )


def test_a_prompt_in_two_splits_stays_where_it_judges(tmp_path):
    write(tmp_path / "a.jsonl", plain(9))
    write(tmp_path / "a.heldout.jsonl", plain(5)[2:])
    write(tmp_path / "a.test.jsonl", plain(7)[4:])
    write(tmp_path / "b.jsonl", plain(5))
    task = load_tasks(tmp_path)[0]
    assert [row.response for row in task.train] == ["a0", "a1", "a7", "a8"]
    assert [row.response for row in task.heldout] == ["a2", "a3"]
    assert [row.response for row in task.test] == ["a4", "a5", "a6"]
    assert task.notes == (
        "1 of 3 held-out rows dropped: their prompts also stand in test rows",
        "5 of 9 training rows dropped: their prompts also stand in held-out or test rows",
    )
    write(tmp_path / "a.jsonl", plain(7)[2:])
    assert "a.jsonl: every prompt also stands in held-out or test rows" in one_line(tmp_path)


def test_a_missing_test_split_shares_no_prompt_with_a_given_heldout_split(tmp_path):
    write(tmp_path / "a.jsonl", plain(20))
    write(tmp_path / "a.heldout.jsonl", plain(5))
    write(tmp_path / "b.jsonl", plain(20))
    task = load_tasks(tmp_path, test_fraction=0.2)[0]
    assert (len(task.train), len(task.heldout), len(task.test)) == (12, 5, 3)
    assert_disjoint(task)


@pytest.mark.parametrize("mark", ["test", "validation", "Dev", "heldout"])
def test_rows_marked_test_or_validation_alone_are_never_trained_on(tmp_path, mark):
    write(tmp_path / "a.jsonl", [{**row, "split": mark} for row in plain(9)])
    write(tmp_path / "b.jsonl", plain(9))
    message = one_line(tmp_path)
    assert "a.jsonl: which split is for training?" in message and "`split`" in message


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "p", "response": "r"}, Example("p\n", "r")),
        ({"prompt": "p ", "response": "r"}, Example("p ", "r")),
        ({"prompt": "p", "response": " r"}, Example("p", " r")),
        ({"prompt": "", "response": "r"}, Example("", "r")),
        ({"inputs": "p", "targets": "r", "other": [1]}, Example("p\n", "r")),
        ({"inputs": 6, "targets": 7}, Example("6\n", "7")),
        ({"instruction": "p", "output": "r"}, Example("p\n", "r")),
        ({"instruction": "p", "input": "", "output": "r"}, Example("p\n", "r")),
        ({"instruction": "p", "input": "i", "output": "r"}, Example("p\n\ni\n", "r")),
        (
            {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]},
            Example("", "", (("user", "p"), ("assistant", "r"))),
        ),
    ],
)
def test_row_schemas(tmp_path, row, expected):
    for suffix in ("jsonl", "parquet"):
        folder = tmp_path / suffix
        for name in ("a", "b"):
            write(folder / f"{name}.{suffix}", [row])
            for split in ("heldout", "test"):
                write(folder / f"{name}.{split}.{suffix}", [other_prompt(row, split)])
        for task in load_tasks(folder):
            assert task.train == (expected,)


def other_prompt(row, split):
    key = next(key for key in ("prompt", "inputs", "instruction", "messages") if key in row)
    if key == "messages":
        return {"messages": [{"role": "user", "content": split}, row["messages"][1]]}
    return {**row, key: split}


def test_saved_data_sets(tmp_path):
    whole = datasets.Dataset.from_list(plain(20))
    whole.save_to_disk(tmp_path / "sets" / "cut")
    parts = datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_list(plain(6)),
            "validation": datasets.Dataset.from_list(plain(2, "v")),
            "test": datasets.Dataset.from_list(plain(3, "t")),
        }
    )
    parts.save_to_disk(tmp_path / "sets" / "family" / "parts")
    tasks = by_name(load_tasks(tmp_path / "sets"))
    assert tasks["cut"].family == "cut" and len(tasks["cut"].heldout) == 2
    assert tasks["parts"].family == "family" and tasks["parts"].notes == ()
    assert [row.prompt for row in tasks["parts"].heldout] == ["v0?\n", "v1?\n"]
    assert [row.prompt for row in tasks["parts"].test] == ["t0?\n", "t1?\n", "t2?\n"]
    message = one_line(tmp_path / "sets" / "cut")
    assert "only one task (cut)" in message


def test_a_data_set_by_name_is_one_task_a_configuration(tmp_path, monkeypatch):
    """Without a network: a local folder with a data set's layout goes through the same call."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    home = tmp_path / "hub" / "someone" / "glue"
    readme = "---\nconfigs:\n"
    for config in ("one", "two"):
        write(home / config / "train.parquet", plain(8, config))
        write(home / config / "validation.parquet", plain(2, "v" + config))
        readme += f"- config_name: {config}\n  data_files:\n"
        for split in ("train", "validation"):
            readme += f"  - split: {split}\n    path: {config}/{split}.parquet\n"
    (home / "README.md").write_text(readme + "---\n")
    load_dataset, get_names = datasets.load_dataset, datasets.get_dataset_config_names
    local = {"someone/glue": str(home)}
    monkeypatch.setattr(datasets, "load_dataset", lambda n, c, revision: load_dataset(local[n], c))
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda n: get_names(local[n]))
    tasks = by_name(load_tasks("someone/glue"))
    assert set(tasks) == {"one", "two"}
    assert {task.family for task in tasks.values()} == {"someone/glue"}
    assert [row.prompt for row in tasks["two"].heldout] == ["vtwo0?\n", "vtwo1?\n"]
    assert len(tasks["one"].train) == 7 and len(tasks["one"].test) == 1
    assert tasks["one"].notes[0].startswith("no test split: 1 of 8 rows cut off")


BAD = {
    "malformed": (
        '{"prompt": "p", "response": "r"}\n{"prompt": "p",\n',
        r"FILE:2: malformed JSON: .* at column 1\d$",
    ),
    "not an object": ("[1, 2]\n", "FILE:1: a line must be a JSON object"),
    "null": ("null\n", "FILE:1: a line must be a JSON object"),
    "no response": ('\n{"prompt": "p"}\n', "FILE:2: a row with no response: 'response' is missing"),
    "blank response": (
        '{"inputs": "p", "targets": " "}\n',
        "FILE:1: a row with no response: 'targets'",
    ),
    "null response": (
        '{"instruction": "p", "output": null}\n',
        "FILE:1: a row with no response: 'output'",
    ),
    "silent chat": (
        '{"messages": [{"role": "user", "content": "p"}]}\n',
        "FILE:1: a row with no response: the assistant says nothing",
    ),
    "broken chat": ('{"messages": [{"role": "user"}]}\n', "FILE:1: message 0 must have a `role`"),
    "chat of text": ('{"messages": "hello"}\n', "FILE:1: `messages` must be a list"),
    "unknown columns": (
        '{"question": "p", "answer": "r"}\n',
        "FILE:1: the columns answer, question are not prompt/response, .*",
    ),
    "a list": ('{"prompt": ["p"], "response": "r"}\n', "FILE:1: 'prompt' holds a list, not text"),
    "surrogate": (
        '{"prompt": "p", "response": "\\ud800"}\n',
        r"FILE:1: a lone surrogate, '\\ud800'",
    ),
    "empty": ("", "FILE: an empty file"),
    "blank": ("\n\n", "FILE: an empty file"),
}


@pytest.mark.parametrize("text, message", BAD.values(), ids=BAD)
def test_a_bad_file_is_named_with_its_line(tmp_path, text, message):
    write(tmp_path / "good.jsonl", plain(5))
    bad = tmp_path / "bad.jsonl"
    bad.write_text(text)
    assert re.match(message.replace("FILE", re.escape(str(bad))), one_line(tmp_path))


def test_a_file_that_is_not_utf8_is_named_with_its_line_and_byte(tmp_path):
    write(tmp_path / "good.jsonl", plain(5))
    bad = tmp_path / "bad.jsonl"
    first = '{"prompt": "é", "response": "r"}\n'.encode()
    bad.write_bytes(first + '{"prompt": "é", "response": "r"}\n'.encode("latin-1"))
    assert one_line(tmp_path) == (
        f"{bad}:2: not UTF-8: byte 0xe9 at offset {len(first) + 12}; save the file as UTF-8"
    )
    # A byte order mark is no harm.
    more = first.replace("é".encode(), b"e") + first.replace("é".encode(), b"i")
    bad.write_bytes(b"\xef\xbb\xbf" + first + more)
    assert len(load_tasks(tmp_path)[0].train) == 1


def test_bad_parquet_and_bad_saved_data_sets_are_named(tmp_path):
    write(tmp_path / "good.jsonl", plain(5))
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 this is none")
    assert one_line(tmp_path).startswith(f"{bad}: cannot be read as Parquet: ")
    write(bad, plain(2)[:0] or [])
    assert one_line(tmp_path).startswith(f"{bad}: an empty file")
    write(bad, [{"prompt": "p", "response": "r"}, {"prompt": "p", "response": None}])
    assert one_line(tmp_path).startswith(f"{bad}, row 1: a row with no response")
    bad.unlink()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    assert "saved: no data set can be read: Dir" in one_line(tmp_path, FileNotFoundError)


def test_a_heldout_split_of_size_0_is_refused(tmp_path):
    write(tmp_path / "a.jsonl", plain(5))
    write(tmp_path / "b.jsonl", plain(1) * 3)
    for fraction in (0.0, 1.0, -0.5, 1.5):
        assert "leaves a split of size 0" in one_line(tmp_path, heldout_fraction=fraction)
        assert "leaves a split of size 0" in one_line(tmp_path, test_fraction=fraction)
    both = {"heldout_fraction": 0.5, "test_fraction": 0.5}
    assert "training split of size 0" in one_line(tmp_path, **both)
    assert one_line(tmp_path) == (
        f"{tmp_path}/b.jsonl: 3 row(s) with 1 different prompt(s) are too few to cut off a "
        "held-out and a test split: add rows, or a file for each split"
    )
    (tmp_path / "b.heldout.jsonl").write_text("")
    assert one_line(tmp_path).startswith(f"{tmp_path}/b.heldout.jsonl: an empty file")
    (tmp_path / "b.heldout.jsonl").unlink()
    (tmp_path / "b.jsonl").unlink()
    none = datasets.Dataset.from_list(plain(5))
    parts = datasets.DatasetDict({"train": none, "test": none.select([])})
    parts.save_to_disk(tmp_path / "saved")
    assert "saved: no data set can be read: 'test' is a split of size 0" in one_line(tmp_path)


def test_names_must_differ_and_be_two(tmp_path):
    write(tmp_path / "x" / "a.jsonl", plain(5))
    assert one_line(tmp_path) == (
        f"only one task (a) in {tmp_path}: a mixture needs two or more; add another"
    )
    assert "only one task (a)" in one_line(tmp_path / "x" / "a.jsonl")
    write(tmp_path / "y" / "a.jsonl", plain(5))
    assert one_line(tmp_path) == (
        f"duplicate task name 'a': {tmp_path}/x/a.jsonl and {tmp_path}/y/a.jsonl; rename one"
    )
    (tmp_path / "y" / "a.jsonl").rename(tmp_path / "y" / "A.jsonl")
    assert "duplicate task name 'A'" in one_line(tmp_path)


def test_nothing_to_read_is_named(tmp_path):
    assert one_line(tmp_path / "none", FileNotFoundError) == f"no such path: {tmp_path}/none"
    assert one_line("nowhere/tasks.jsonl", FileNotFoundError) == "no such path: nowhere/tasks.jsonl"
    assert "no file that ends in .jsonl, .json" in one_line(tmp_path)
    (tmp_path / "tasks.txt").write_text("a,b")
    assert "tasks are read from .yaml, a folder, or .jsonl" in one_line(tmp_path / "tasks.txt")
    for split in ("heldout", "test"):
        write(tmp_path / f"a.{split}.jsonl", plain(5))
        assert f"a {split} split without its training file" in one_line(tmp_path)
        (tmp_path / f"a.{split}.jsonl").unlink()


def test_a_name_that_the_hub_does_not_answer_is_named(monkeypatch):
    def refuse(name):
        raise ConnectionError("offline\nand a traceback of its own")

    monkeypatch.setattr(datasets, "get_dataset_config_names", refuse)
    message = one_line("someone/nothing", FileNotFoundError)
    assert message == "someone/nothing: no data set can be read: offline"
