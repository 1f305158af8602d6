"""Files of every ending that we read: the same rows, and errors that name file and line or row."""

import bz2
import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from taskpgm.tasks.readers import read_table, split_ending

ROWS = [{"prompt": f"q{i}, é\n", "response": '"a"'} for i in range(3)]


def text_of(ending, rows=ROWS):
    if ending == ".json":
        return json.dumps(rows, ensure_ascii=False, indent=1)
    if ending == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    mark = {".csv": ",", ".tsv": "\t"}[ending]
    lines = [mark.join(rows[0])]
    lines += [
        mark.join('"' + cell.replace('"', '""') + '"' for cell in row.values()) for row in rows
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".tsv", ".JSONL", ".Csv"])
@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".XZ", lzma.compress)],
)
def test_the_rows_are_the_same_whatever_the_ending(tmp_path, ending, suffix, compress):
    path = tmp_path / f"a.b{ending}{suffix}"
    path.write_bytes(compress(text_of(ending.lower()).encode()))
    assert split_ending(path) == ("a.b", ending.lower())
    table = read_table(path)
    assert [dict(table.row(i)) for i in range(len(table.rows))] == ROWS
    assert table.column("response") == ['"a"'] * 3
    assert dict(table.select([2]).row(0)) == ROWS[2]
    # What follows a byte order mark is read alike.
    path.write_bytes(compress(b"\xef\xbb\xbf" + text_of(ending.lower()).encode()))
    assert dict(read_table(path).row(0)) == ROWS[0]


@pytest.mark.parametrize("name", ["a.txt", ".jsonl", "a", "a.gz", "a.parquet.gz", "a.jsonl.zst"])
def test_other_endings_are_not_read(tmp_path, name):
    assert split_ending(tmp_path / name) is None
    with pytest.raises(ValueError, match="rows are read from .jsonl, .json, .csv"):
        read_table(tmp_path / name)


def test_cells_of_a_csv_are_text_as_they_are_written(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,response\n007,NA\nnull,1e3\nTrue,\n")
    table = read_table(path)
    assert [tuple(table.row(i).values()) for i in range(3)] == [
        ("007", "NA"),
        ("null", "1e3"),
        ("True", ""),
    ]
    assert [table.where(i) for i in range(3)] == [f"{path}:{line}" for line in (2, 3, 4)]


GOOD = '{"prompt": "p", "response": "r"}\n'
BAD = {
    "5000 digits": ("a.jsonl", GOOD + '{"prompt": ' + "9" * 5000 + "}", ":2: malformed JSON: Exc"),
    "deep": ("a.jsonl", GOOD + "[" * 200_000, ":2: malformed JSON: nested too deeply"),
    "deep object": ("a.jsonl", '{"a":' * 100_000, ":1: malformed JSON: nested too deeply"),
    "one key twice": (
        "a.jsonl",
        '{"a": 1, "a": 2}',
        ":1: malformed JSON: the key 'a' appears twice",
    ),
    "deep array": ("a.json", "[" * 200_000, ":1: malformed JSON: nested too deeply"),
    "later line": ("a.json", "[\n{},\n{,}\n]", ":3: malformed JSON: "),
    "no object": ("a.json", "[{}, 3]", ", row 1: must be a JSON object"),
    "empty array": ("a.json", "[]", ": an empty file"),
    "lines in json": ("a.json", GOOD + "{", ":2: malformed JSON: "),
    "short line": ("a.csv", "a,b\n1,2\n1\n", ":3: 1 cells, and the header names 2"),
    "long line": ("a.csv", 'a,b\n"1\n2",2\n1,2,3\n', ":4: 3 cells, and the header names 2"),
    "column twice": ("a.csv", "a,a\n1,2\n", ":1: the header must name every column once"),
    "unnamed column": ("a.tsv", "a\t\n1\t2\n", ":1: the header must name every column once"),
    "open quote": ("a.csv", 'a,b\n1,"2\n', ":2: malformed CSV: unexpected end of data"),
    "header alone": ("a.csv", "a,b\n", ": an empty file"),
    "no bytes": ("a.csv", "", ": an empty file"),
    "no gzip": ("a.jsonl.gz", GOOD, ":1: cannot be decompressed: "),
    "no xz": ("a.csv.xz", GOOD, ":1: cannot be decompressed: "),
    "no bz2": ("a.json.bz2", GOOD, ": cannot be "),
    "no parquet": ("a.parquet", "PAR1 this is none PAR1", ": cannot be read as Parquet: "),
    "empty parquet": ("a.parquet", "", ": cannot be read as Parquet: "),
}


@pytest.mark.parametrize(("name", "text", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as caught:
        read_table(tmp_path / name)
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / name}{message}") and "\n" not in line and len(line) < 500


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".json"])
def test_bytes_that_are_no_utf8_are_named_with_line_and_place(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"\n" + "a,é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r":2: not UTF-8: byte 0xe9 at offset 3; save"):
        read_table(path)


def test_a_cut_off_gzip_is_named(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD.encode() * 50)[:-12])
    with pytest.raises(ValueError, match="a.jsonl.gz:.*cannot be decompressed"):
        read_table(path)


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match="none.jsonl: cannot be read: No such file"):
        read_table(tmp_path / "none.jsonl")


def test_faults_inside_a_parquet_file_are_named_with_their_row(tmp_path):
    path = tmp_path / "a.parquet"
    begins = b"".join(i.to_bytes(4, "little") for i in (0, 1, 2))
    buffers = [None, pyarrow.py_buffer(begins), pyarrow.py_buffer(b"r\xfe")]
    bad = pyarrow.Array.from_buffers(pyarrow.string(), 2, buffers)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "response": bad}), path)
    table = read_table(path)
    assert table.row(0)["response"] == "r"
    with pytest.raises(ValueError, match="a.parquet, row 1: cannot be read: 'utf-8' codec"):
        table.row(1)
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, names=["prompt", "prompt"])
    pyarrow.parquet.write_table(twice, path)
    with pytest.raises(ValueError, match="a.parquet: "):
        read_table(path)
