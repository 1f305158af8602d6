"""Any bytes give rows, or a ValueError of one line that names the file."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from taskpgm.tasks import Example, load_tasks, manifest
from taskpgm.tasks.readers import READERS, read_table
from taskpgm.tasks.row_schema import checked_schema, read_row

quietly = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
words = st.sampled_from(
    ["prompt", "response", "messages", "role", "content", "split", "test", "{q}", "{", "é", ""]
)
text = words | st.text(max_size=12)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | text
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)


def one_line(error: Exception, *named: str) -> None:
    message = str(error)
    assert message and "\n" not in message and len(message) < 2000
    assert all(name in message for name in named), message


def near_json(rows) -> bytes:
    """What JSON Lines may look like, NaN and lone surrogates included."""
    return "\n".join(json.dumps(row) for row in rows).encode()


def near_csv(rows) -> bytes:
    cells = (",".join(str(value) for value in row) for row in rows)
    return "\n".join(cells).encode("utf-8", "surrogatepass")


data = (
    st.binary(max_size=200)
    | st.lists(values, max_size=4).map(near_json)
    | st.lists(st.lists(text, max_size=3), max_size=4).map(near_csv)
    | st.tuples(
        st.sampled_from([b"PAR1", b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"BZh9"]), st.binary()
    ).map(b"".join)
)


@pytest.mark.parametrize("ending", [*READERS, ".jsonl.gz", ".csv.xz", ".json.bz2"])
@quietly
@given(content=data)
@example(content=b"[" * 10_000)
@example(content=b"\xff\xfe")
@example(content=b"\x1f\x8b\x08" + bytes(7) + b"\x06")  # a gzip header, then no block
@example(content=b'{"a": 1}\r\n\r\n{"a": ' + b"9" * 5000)
def test_any_bytes_give_rows_or_one_line(tmp_path, ending, content):
    path = tmp_path / f"rows{ending}"
    path.write_bytes(content)
    try:
        table = read_table(path)
    except ValueError as error:
        one_line(error, str(path))
        return
    assert len(table.rows) > 0
    for index in range(len(table.rows)):
        assert isinstance(table.row(index), dict)
        assert table.where(index).startswith(str(path))


@quietly
@given(row=st.dictionaries(text, values, max_size=5))
@example(row={"prompt": "\ud800", "response": "r"})
@example(row={"messages": [{"role": "assistant", "content": float("nan")}]})
def test_any_row_is_an_example_or_one_line(row):
    for columns, template, labels in (
        ({}, None, {}),
        ({"prompt": "prompt", "response": "content"}, None, {}),
        ({}, {"prompt": "{prompt[0]}", "response": "{response!r:>5}"}, {}),
        ({}, None, {"response": ["no", "yes"]}),
    ):
        try:
            found = read_row(row, "rows.jsonl:1", checked_schema(columns, template, labels))
        except ValueError as error:
            one_line(error, "rows.jsonl:1")
            continue
        assert isinstance(found, Example)
        assert found.response.strip() or found.messages
        (found.prompt + found.response).encode()


@quietly
@given(rows=st.lists(st.dictionaries(text, scalars, max_size=4), max_size=8))
def test_any_folder_gives_tasks_or_one_line(tmp_path, rows):
    good = [{"prompt": str(i), "response": "r"} for i in range(6)]
    (tmp_path / "good.jsonl").write_bytes(near_json(good))
    (tmp_path / "fuzz.jsonl").write_bytes(near_json([*good, *rows]))
    try:
        tasks = load_tasks(tmp_path)
    except ValueError as error:
        one_line(error, "fuzz.jsonl")
        return
    assert [task.name for task in tasks] == ["fuzz", "good"]
    for task in tasks:
        splits = [{row.context for row in rows} for rows in (task.train, task.heldout, task.test)]
        assert all(splits) and not splits[0] & splits[1] and not (splits[0] | splits[1]) & splits[2]


keys = st.sampled_from([*manifest.KEYS, "defaults", "tasks", "<<"]) | text
entries = st.dictionaries(keys, values | st.just("./rows.jsonl"), max_size=5)


@quietly
@given(spec=values | st.fixed_dictionaries({"tasks": st.lists(entries, max_size=3)}))
def test_any_mapping_is_a_manifest_or_one_line(spec):
    # Names that could be data sets on the hub are out of reach: only paths are opened.
    if isinstance(spec, dict) and isinstance(spec.get("tasks"), list):
        for entry in spec["tasks"]:
            if isinstance(entry, dict) and isinstance(entry.get("source"), str):
                entry["source"] = "./" + entry["source"]
    try:
        manifest.parse(spec, Path("nowhere"), "tasks.yaml")
    except (ValueError, FileNotFoundError) as error:
        one_line(error, "tasks.yaml")


@quietly
@given(
    content=st.binary(max_size=200) | text.map(lambda x: f"tasks: {x}".encode("utf-8", "replace"))
)
@example(content=b"a: &a [*a]")
@example(content=b"[" * 5000)
@example(content=b"? {")
@example(content=b"tasks: !!timestamp 1")
@example(content=b"\x00")
@example(content=b"%YAML 9.9\n---\na")
@example(content=b"tasks: [{source: 2024-13-45}]")
def test_any_bytes_of_a_manifest_give_tasks_or_one_line(tmp_path, content):
    path = tmp_path / "tasks.yaml"
    path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        manifest.read(path)
    one_line(caught.value, str(path))
