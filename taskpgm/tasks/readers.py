"""Files -> tables, whose messages name a row by its place in the file."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing datasets costs a second
    from datasets import Dataset


@dataclass(frozen=True)
class Table:
    """The rows of one split: a list, or a `datasets.Dataset`, which decodes a row when asked.

    Messages call row i name + mark + places[i], as in "file:12"; without places, i is its number.
    labels: by column, the class names of a column of class numbers (a ClassLabel feature).
    """

    name: str
    rows: "list[dict[str, Any]] | Dataset"
    places: Sequence[int] | None = None
    mark: str = ", row "
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def where(self, index: int) -> str:
        return f"{self.name}{self.mark}{self.places[index] if self.places else index}"

    def row(self, index: int) -> Mapping[str, Any]:
        """Raises ValueError, naming the row, where its bytes cannot be decoded (bad UTF-8)."""
        try:
            return self.rows[index]
        except Exception as error:  # pyarrow's own, UnicodeDecodeError, and whatever decodes media
            raise ValueError(f"{self.where(index)}: cannot be read: {first_line(error)}") from error

    def column(self, name: str) -> list[Any]:
        """Every row's value in a column. Raises ValueError where no row has it."""
        rows = self.rows
        in_memory = isinstance(rows, list)
        known = {key for row in rows for key in row} if in_memory else rows.column_names
        if name not in known:
            raise ValueError(
                f"{self.name}: no column {name!r}: there are {', '.join(sorted(map(str, known)))}"
            )
        return [row.get(name) for row in rows] if in_memory else list(rows[name])

    def select(self, indices: Sequence[int]) -> "Table":
        """Some of the rows; messages still name them by their place in the file."""
        rows = self.rows
        rows = [rows[i] for i in indices] if isinstance(rows, list) else rows.select(indices)
        places = [self.places[i] if self.places else i for i in indices]
        return replace(self, rows=rows, places=places)


# --- Files ---------------------------------------------------------------------------------------
# `datasets` has readers for JSON Lines too. Ours keeps the line number for messages, takes files
# whose rows have different keys and types, and writes no second copy into a cache.


def read_jsonl(path: Path) -> Table:
    """One JSON object per line; blank lines are skipped.

    Raises ValueError that names file and line: not UTF-8, not JSON, not an object; an empty file.
    """
    rows, lines = [], []
    for number, line in _lines(path):
        if not line.strip():
            continue
        row = _json(line.rstrip("\r\n"), path, number)
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: a line must be a JSON object, {{...}}")
        rows.append(row)
        lines.append(number)
    return _not_empty(Table(str(path), rows, lines, ":"))


def read_json(path: Path) -> Table:
    """One JSON array of objects; or JSON Lines in spite of the ending.

    Raises ValueError naming the file and the line or row.
    """
    text = "".join(line for _, line in _lines(path))
    if not text.lstrip().startswith("["):
        return read_jsonl(path)
    rows = _json(text, path, 1)
    table = Table(str(path), rows)
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{table.where(index)}: must be a JSON object, {{...}}")
    return _not_empty(table)


def read_csv(path: Path, delimiter: str = ",") -> Table:
    """Comma-separated values below a header. Every cell is text as written.

    Raises ValueError that names file and line: a header with an empty or repeated name, a line with
    more or fewer cells than the header, a stray quote.
    """
    csv.field_size_limit(2**31 - 1)  # a cell may be a long document
    text = io.StringIO("".join(line for _, line in _lines(path)), newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    rows, lines = [], []
    try:
        header = next(reader, [])
        if len(set(header)) < len(header) or not all(name.strip() for name in header):
            raise ValueError(f"{path}:1: the header must name every column once: {header}"[:300])
        begin = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                raise ValueError(
                    f"{path}:{begin}: {len(cells)} cells, and the header names {len(header)}"
                )
            if cells:
                rows.append(dict(zip(header, cells, strict=True)))
                lines.append(begin)
            begin = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: malformed CSV: {error}") from error
    return _not_empty(Table(str(path), rows, lines, ":"))


def read_tsv(path: Path) -> Table:
    """As `read_csv`, with tabs between the cells."""
    return read_csv(path, "\t")


def read_parquet(path: Path) -> Table:
    """The rows of a Parquet file, decoded when asked for.

    Raises ValueError for another kind of file, for two columns of one name, and for no rows.
    """
    import datasets
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read as Parquet: {first_line(error)}") from error
    names = table.column_names
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: two columns are called {twice!r}: rename one")
    try:
        rows = datasets.Dataset(table)
    except Exception as error:  # the library's own kinds have no common parent
        raise ValueError(f"{path}: its columns cannot be read: {first_line(error)}") from error
    return _not_empty(Table(str(path), rows, labels=class_labels(rows)))


READERS: Mapping[str, Callable[[Path], Table]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
}
DECOMPRESS: Mapping[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: gzip.GzipFile(path),  # type: ignore  # its stub does not say IO[bytes]
    ".bz2": lambda path: bz2.BZ2File(path),
    ".xz": lambda path: lzma.LZMAFile(path),
}
ENDINGS = f"{', '.join(READERS)} (also with {', '.join(DECOMPRESS)} after all but .parquet)"


def split_ending(path: Path) -> tuple[str, str] | None:
    """("a.test", ".jsonl") for "a.test.JSONL.gz"; None for an ending that no reader knows."""
    name = path.name
    compressed = path.suffix.lower() in DECOMPRESS
    if compressed:
        name = name[: -len(path.suffix)]
    stem, ending = Path(name).stem, Path(name).suffix.lower()
    known = ending in READERS and stem and not (compressed and ending == ".parquet")
    return (stem, ending) if known else None


def read_table(path: Path) -> Table:
    """The rows of a file, by its ending. Raises ValueError with one line that names the file."""
    ending = split_ending(path)
    if ending is None:
        raise ValueError(f"{path}: rows are read from {ENDINGS}")
    try:
        return READERS[ending[1]](path)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read: {error.strerror or first_line(error)}"
        ) from error


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a UTF-8 file, decompressed where its ending says so."""
    begin, number = 0, 0
    opened = DECOMPRESS.get(path.suffix.lower(), lambda path: path.open("rb"))
    try:
        with opened(path) as file:
            for number, raw in enumerate(file, 1):
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                begin += len(raw)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}:{number}: not UTF-8: byte {error.object[error.start]:#04x} at offset "
            f"{begin + error.start}; save the file as UTF-8"
        ) from error
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"{path}:{number + 1}: cannot be decompressed: {error}") from error


def _json(text: str, path: Path, line: int) -> Any:
    """The value of a JSON text that begins on this line of the file."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{line + error.lineno - 1}: malformed JSON: {error.msg} at column {error.colno}"
        ) from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # a repeated key, a number of 5000 digits, [[[[...
        reason = "nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise ValueError(f"{path}:{line}: malformed JSON: {reason}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!a} appears twice in one object")
    return row


def _not_empty(table: Table) -> Table:
    if not len(table.rows):
        raise ValueError(
            f"{table.name}: an empty file: a task needs rows; add some or remove the file"
        )
    return table


def first_line(error: BaseException) -> str:
    """The first line of an error's message, of a readable length."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def class_labels(rows: Any) -> dict[str, list[str]]:
    """The class names of a data set's ClassLabel columns, by column."""
    return {
        column: feature.names
        for column, feature in rows.features.items()
        if hasattr(feature, "names")
    }
