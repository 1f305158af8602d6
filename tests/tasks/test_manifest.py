"""Manifests: many sources in one file, each read in its own way."""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest

from taskpgm.tasks import Example, load_tasks

ROWS = [
    {"question": f"q{i}", "choice": i % 2, "kind": "even/odd"[5 * (i % 2) :][:4], "area": "n"}
    for i in range(20)
]


@pytest.fixture
def folder(made, tmp_path):
    """A folder with a JSONL file, a saved data set, and one laid out as on the hub."""
    return Path(shutil.copytree(made, tmp_path, dirs_exist_ok=True))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("made")
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_text(text)
    data = datasets.Dataset.from_list(ROWS)
    names = datasets.ClassLabel(names=["no", "yes"])
    datasets.DatasetDict({"train": data, "test": data.select(range(4))}).cast_column(
        "choice", names
    ).save_to_disk(tmp_path / "saved")
    (tmp_path / "hub").mkdir()
    data.to_parquet(tmp_path / "hub" / "train.parquet")
    data.select([19]).to_parquet(tmp_path / "hub" / "test.parquet")
    return tmp_path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def manifest(folder, text) -> Path:
    path = folder / "tasks.yaml"
    path.write_text(text)
    return path


def one_line(spec, error=ValueError):
    with pytest.raises(error) as caught:
        load_tasks(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_many_sources_with_defaults(folder):
    path = manifest(
        folder,
        """
defaults:
  columns: {prompt: question, response: choice}
  family: questions
tasks:
  - source: rows.jsonl
  - name: stored
    source: saved
    family: other
    limit: 5
    heldout_limit: 2
    test_limit: 3
  - name: named
    source: hub
    template: {prompt: "Q: {question}\\nA: ", response: "{choice}"}
    labels: {choice: ["no", "yes"]}
    heldout_split: test
""",
    )
    rows, stored, named = load_tasks(path)
    assert (rows.name, rows.family) == ("rows", "questions")
    assert (len(rows.train), len(rows.heldout), len(rows.test)) == (16, 2, 2)
    assert {row.response for row in rows.train} == {"0", "1"}
    assert (stored.name, stored.family) == ("stored", "other")
    assert len(stored.train) == 5 and 1 <= len(stored.heldout) <= 2 and len(stored.test) == 3
    assert {row.response for row in stored.train + stored.heldout} <= {"no", "yes"}
    assert "limited to 5 training rows (seeded)" in stored.notes
    assert "limited to 3 test rows (seeded)" in stored.notes
    assert named.family == "questions" and len(named.train) == 17 and len(named.test) == 2
    assert "1 of 20 training rows dropped" in named.notes[0]
    assert named.heldout == (Example("Q: q19\nA: ", "yes"),)


def test_a_limit_leaves_that_many_rows_after_the_cut(folder):
    entry = {"source": "rows.jsonl", "columns": {"inputs": "question", "targets": "choice"}}
    tasks = [{**entry, "name": "a", "limit": 8}, {**entry, "name": "b"}]
    a, b = load_tasks({"tasks": [{**t, "source": str(folder / "rows.jsonl")} for t in tasks]})
    assert len(a.train) == 8 and len(a.heldout) >= 1 <= len(a.test) and len(b.train) == 16


def test_one_task_for_every_value_of_a_column(folder):
    form = {"columns": {"prompt": "question", "response": "choice"}, "task_column": "kind"}
    for source in ("rows.jsonl", "saved"):
        spec = {"defaults": form, "tasks": [{"source": str(folder / source)}]}
        even, odd = load_tasks(spec)
        assert (even.name, even.family, odd.name) == ("even", "even", "odd")
        spec["tasks"][0]["family_column"] = "area"
        assert {task.family for task in load_tasks(spec)} == {"n"}
        assert all(int(row.prompt[1:]) % 2 == 1 for row in odd.train + odd.heldout)
        if source == "saved":
            assert [row.prompt for row in odd.test] == ["q1\n", "q3\n"]
            assert {row.response for row in odd.train} == {"yes"}


def test_names_out_of_data_are_made_fit_for_folders(folder):
    rows = [{"prompt": str(i), "response": "r", "task": f"arc/easy:{i % 2}"} for i in range(8)]
    (folder / "arc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"tasks": [{"source": str(folder / "arc.jsonl"), "task_column": "task"}]}
    assert [task.name for task in load_tasks(spec)] == ["arc-easy-0", "arc-easy-1"]


def test_nested_fields_in_a_template(folder):
    rows = [{"id": i, "answers": {"text": [f"a{i}"]}} for i in range(4)]
    (folder / "squad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {
        "source": str(folder / "squad.jsonl"),
        "name": "a",
        "template": {"prompt": "{id}", "response": "{answers[text][0]}"},
    }
    task = load_tasks({"tasks": [entry, {**entry, "name": "b"}]})[0]
    assert {row.response for row in task.train + task.heldout + task.test} == {
        "a0",
        "a1",
        "a2",
        "a3",
    }


GOOD = "{source: rows.jsonl, columns: {prompt: question, response: choice}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "PATH: an empty file"),
        ("tasks: [", "PATH:.*: malformed YAML: "),
        ("- a", "PATH: a manifest is a mapping with `tasks:`"),
        ("tasks: []", "PATH: `tasks` must be a list"),
        ("task: []", "PATH: unknown key 'task': did you mean 'tasks'?"),
        ("tasks: [{sorce: a}]", "PATH: task 1: unknown key 'sorce': did you mean 'source'?"),
        (
            "tasks: [{name: x, held_out: a}]",
            r"PATH: task 1 \(x\): unknown key 'held_out': did you mean 'heldout_split'?",
        ),
        ("tasks: [{zzz: a}]", "PATH: task 1: unknown key 'zzz': known: columns, "),
        (
            "defaults: {limits: 3}\ntasks: [{source: a}]",
            "PATH: defaults: unknown key 'limits': did you mean 'limit'?",
        ),
        ("tasks: [rows.jsonl]", "PATH: task 1: must be a mapping"),
        ("tasks: [{name: a}]", r"PATH: task 1 \(a\): no `source`"),
        ("tasks: [{source: [3]}]", r"PATH: task 1: `source` must be text, not \['3'\]"),
        ("tasks: [{source: a, limit: many}]", "PATH: task 1: `limit` must be a whole number"),
        ("tasks: [{source: a, limit: true}]", "PATH: task 1: `limit` must be a whole number"),
        ("tasks: [{source: a, heldout_limit: 0}]", "PATH: task 1: `heldout_limit` is 0: a split"),
        (
            "tasks: [{source: a, columns: {promt: x}}]",
            "PATH: task 1: columns: unknown key 'promt': did you mean 'prompt'?",
        ),
        ("tasks: [{source: a, template: {prompt: x}}]", "PATH: task 1: `template` needs both"),
        (
            "tasks: [{source: a, columns: {prompt: x}, template: {prompt: x, response: y}}]",
            "PATH: task 1: `columns` and `template` both",
        ),
        ("tasks: [{source: rows.jsonl, split: dev}]", "PATH: task 1: no split 'dev': there are t"),
        (
            "tasks: [{source: saved, heldout_split: train}]",
            "PATH: task 1: 'train' cannot be the training and the held-out split at once",
        ),
        ("tasks: [{source: rows.jsonl, task_column: sort}]", ".*rows.jsonl: no column 'sort'"),
        ("tasks: [{source: saved, task_column: sort}]", r".*saved\[train\]: no column 'sort'"),
        (f"tasks: [{GOOD}]", r"only one task \(rows\) in PATH"),
        (f"tasks: [{GOOD}, {GOOD}]", "duplicate task name 'rows'"),
        (
            "tasks: [{name: a/b, source: rows.jsonl}, {source: saved}]",
            ".*rows.jsonl: task name 'a/b' cannot name a folder",
        ),
        (
            f"tasks: [{GOOD}, {{source: rows.jsonl, name: b, "
            "columns: {prompt: query, response: choice}}]",
            ".*rows.jsonl:1: no column 'query' .named as prompt.: there are area, choice",
        ),
        (
            f"tasks: [{GOOD}, {{source: saved, template: {{prompt: '{{query}}', response: a}}}}]",
            r".*saved\[test\], row 0: the prompt template '{query}' fails on 'query': there are",
        ),
        (
            f"tasks: [{GOOD}, {{source: rows.jsonl, name: b, labels: {{choice: [none]}}, "
            "columns: {prompt: question, response: choice}}]",
            ".*rows.jsonl:2: choice is 1, and there are labels for 0 to 0",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_key(folder, text, message):
    path = manifest(folder, text)
    assert re.match(message.replace("PATH", re.escape(str(path))), one_line(path))


def test_what_is_not_there_is_named(folder):
    path = manifest(folder, "tasks: [{name: a, source: none.jsonl}]")
    assert one_line(path, FileNotFoundError) == (
        f"{path}: task 1 (a): no such file or folder: {folder}/none.jsonl"
    )
    path.write_bytes(b"tasks: \xff")
    assert one_line(path) == f"{path}: not UTF-8 at byte 7; save it as UTF-8"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ("[no, yes]", ["no", "yes"]),
        ("[off, on]", ["off", "on"]),
        ("[N, Y]", ["N", "Y"]),
        ("[true, False]", ["true", "False"]),
        ("[1, 2]", ["1", "2"]),
        ("[007, 1_000]", ["007", "1_000"]),
        ("[1:30, 2024-01-01]", ["1:30", "2024-01-01"]),
        ("[1e3, .inf]", ["1e3", ".inf"]),
    ],
)
def test_words_are_read_as_they_are_written(folder, labels, words):
    path = manifest(
        folder,
        "defaults: {columns: {prompt: question, response: choice}}\n"
        f"tasks: [{{source: rows.jsonl, labels: {{choice: {labels}}}}}, {{source: saved}}]",
    )
    task = load_tasks(path)[0]
    assert {row.response for row in task.train} == set(words)


def test_names_that_yaml_would_take_for_numbers_stay_names(folder):
    path = manifest(
        folder,
        "defaults: {columns: {prompt: question, response: choice}, limit: 5}\n"
        "tasks: [{name: 007, family: no, source: rows.jsonl}, {name: 1e3, source: rows.jsonl}]",
    )
    assert [(task.name, task.family) for task in load_tasks(path)] == [
        ("007", "no"),
        ("1e3", "1e3"),
    ]


def bomb(key):
    levels = [f"- &a0 [{','.join(['lol'] * 9)}]"]
    levels += [f"- &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return f"tasks:\n  - {key}:\n" + "".join(f"    {level}\n" for level in levels) + "    source: x"


MERGES = (
    "a0: &a0 {"
    + ", ".join(f"k{i}: v" for i in range(9))
    + "}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((bomb(key), "task 1: `") for key in ("name", "config", "limit", "columns", "labels")),
        (bomb("zzz"), "unknown key 'zzz'"),
        (MERGES, "tasks.yaml"),  # newer versions of PyYAML merge each entry once
        ("tasks: " + "[" * 100_000, "malformed YAML"),
        ("tasks: &a [*a]", "task 1: must be a mapping"),
        ("tasks: [{source: a, source: b}]", "malformed YAML: the key 'source' appears twice"),
        ("tasks: [{source: a, labels: {x: *b}}]", "malformed YAML: found undefined alias"),
        ("tasks: [{source: !!python/object:os.system a}]", "malformed YAML: could not determine"),
        ("tasks: [{source: a, name: }]", "`name` must be text, not None"),
        ("tasks: [{source: a, labels: {x: [no, ~]}}]", "labels: 'x' needs a list of texts"),
        ("tasks: [{source: a, columns: {prompt: [a], response: b}}]", "columns: 'prompt' must"),
        ("tasks: [{source: a, family_column: x}]", "`family_column` needs a `task_column`"),
        ('tasks: [{source: "~nosuchuser/x.jsonl"}]', "no home folder for '~nosuchuser/x.jsonl'"),
        ("tasks: [{source: a, test_limit: 0}]", "`test_limit` is 0: a split of size 0"),
        ("tasks: [{source: rows.jsonl, test_split: dev}]", "no split 'dev'"),
    ],
)
def test_no_manifest_hangs_or_says_more_than_a_line(folder, text, message):
    line = one_line(manifest(folder, text))
    assert message in line and len(line) < 1000 and line.startswith(str(folder))


def test_a_test_split_whose_answers_are_hidden_is_not_used_and_said(folder):
    rows = [{"q": f"q{i}", "label": i % 2} for i in range(20)]
    names = datasets.Features(
        {"q": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    hidden = [{"q": f"t{i}", "label": -1} for i in range(4)]
    parts = {"train": rows, "validation": rows[:2], "test": hidden}
    datasets.DatasetDict(
        {k: datasets.Dataset.from_list(v, features=names) for k, v in parts.items()}
    ).save_to_disk(folder / "glue")
    entry = {"source": str(folder / "glue"), "columns": {"prompt": "q", "response": "label"}}
    task = load_tasks({"tasks": [{**entry, "name": "a"}, {**entry, "name": "b"}]})[0]
    assert (len(task.train), len(task.heldout), len(task.test)) == (16, 2, 2)
    assert "the test split is not used, its rows have no answers" in task.notes[0]
    assert not {row.prompt for row in task.test} & {row.prompt for row in task.heldout}
    line = one_line({"tasks": [{**entry, "name": "a", "test_split": "test"}, entry]})
    assert "glue[test], row 0: a row with no response" in line


def test_only_an_explicit_split_trains_on_test_rows(folder):
    rows = [{"prompt": f"q{i}", "response": "r"} for i in range(20)]
    for name in ("test", "validation", "dev"):
        datasets.DatasetDict({name: datasets.Dataset.from_list(rows)}).save_to_disk(folder / name)
        entry = {"source": str(folder / name)}
        assert "which split is for training?" in one_line({"tasks": [entry, entry]})
        named = {**entry, "split": name}
        tasks = load_tasks({"tasks": [{**named, "name": "a"}, {**named, "name": "b"}]})
        assert len(tasks[0].train) == 16
