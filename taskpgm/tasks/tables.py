"""Files and data sets -> tables: rows, each of which can say where it stands."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

HELDOUT_NAMES = ("heldout", "validation", "valid", "dev", "test")


@dataclass(frozen=True)
class Table:
    """The rows of one split: a list, or a `datasets.Dataset` whose rows stay on disk.

    places, mark: row i is spoken of as name + mark + places[i] ("file:12"); without places it is i.
    labels: columns that hold the number of a word, with their words (ClassLabel features).
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    places: Sequence[int] | None = None
    mark: str = ", row "
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def where(self, index: int) -> str:
        return f"{self.name}{self.mark}{self.places[index] if self.places else index}"

    def column(self, name: str) -> list:
        """Every row's value in a column. Raises ValueError where no row has it."""
        if hasattr(self.rows, "column_names"):
            known, values = name in self.rows.column_names, None
            values = list(self.rows[name]) if known else None
        else:
            known = any(name in row for row in self.rows)
            values = [row.get(name) for row in self.rows]
        if not known:
            raise ValueError(f"{self.name}: no column {name!r}")
        return values

    def select(self, indices: Sequence[int]) -> "Table":
        """Some of the rows, which are still spoken of as they were."""
        lazily = hasattr(self.rows, "select")
        rows = self.rows.select(indices) if lazily else [self.rows[i] for i in indices]
        places = [self.places[i] if self.places else i for i in indices]
        return replace(self, rows=rows, places=places)


def read_jsonl(path: Path) -> Table:
    """One JSON object a line; blank lines are passed over.

    Raises ValueError naming file and line: not UTF-8, not JSON, not an object, or nothing in the
    file.
    """
    rows, lines, begin = [], [], 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                row = json.loads(line.rstrip("\r\n")) if line.strip() else None
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: not UTF-8: byte {raw[error.start]:#04x} at offset "
                    f"{begin + error.start}; save the file as UTF-8"
                ) from error
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}:{number}: malformed JSON: {error.msg} at column {error.colno}"
                ) from error
            begin += len(raw)
            if row is None and not line.strip():
                continue
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{number}: a line must be a JSON object, {{...}}")
            rows.append(row)
            lines.append(number)
    return Table(str(path), _some(rows, path), lines, ":")


def read_parquet(path: Path) -> Table:
    """The rows of a Parquet file. Raises ValueError for another kind of file, and for no rows."""
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: not a Parquet file: {reason}") from error
    return Table(str(path), _some(rows, path))


READERS = {".jsonl": read_jsonl, ".parquet": read_parquet}


def read_file(path: Path) -> dict[str, Table]:
    """The splits of NAME.jsonl or NAME.parquet: "heldout" is NAME.heldout.jsonl (or .parquet)
    beside it, or the rows whose column `split` says so."""
    table = READERS[path.suffix](path)
    beside = [path.with_name(f"{path.stem}.heldout{suffix}") for suffix in READERS]
    for heldout in beside:
        if heldout.is_file():
            return {"train": table, "heldout": READERS[heldout.suffix](heldout)}
    marks = [row.get("split") for row in table.rows]
    if all(mark is None for mark in marks):
        return {"train": table}
    places: dict[str, list[int]] = {"train": [], "heldout": []}
    for index, mark in enumerate(marks):
        if mark != "train" and mark not in HELDOUT_NAMES:
            raise ValueError(
                f"{table.where(index)}: `split` is {mark!r}: it must be 'train' or 'heldout'"
            )
        places["train" if mark == "train" else "heldout"].append(index)
    return {split: table.select(indices) for split, indices in places.items() if indices}


def is_saved(path: Path) -> bool:
    """Whether a folder is what `save_to_disk` of the `datasets` library leaves."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def read_saved(path: Path) -> dict[str, Table]:
    """The splits of a data set saved to disk; one without splits is called "train"."""
    import datasets

    try:
        for state in sorted([*path.glob("state.json"), *path.glob("*/state.json")]):
            if json.loads(state.read_text()).get("_data_files") == []:  # which it could not load
                raise ValueError(f"{state.parent.name!r} is a split of size 0: give it rows")
        return _splits(datasets.load_from_disk(str(path)), str(path))
    except Exception as error:  # the library's own, pyarrow's and fsspec's, with no common parent
        raise _unreadable(str(path), error) from error


def read_named(name: str, config: str | None) -> dict[str, Table]:
    """The splits of a data set of that name on the hub, or in a folder laid out like one."""
    import datasets

    try:
        return _splits(datasets.load_dataset(name, config), name)
    except Exception as error:  # as above, and whatever the network says
        raise _unreadable(f"{name} ({config})" if config else name, error) from error


def configs(name: str) -> list[str]:
    """The configurations of a data set on the hub."""
    import datasets

    try:
        return list(datasets.get_dataset_config_names(name))
    except Exception as error:
        raise _unreadable(name, error) from error


def _splits(data: Any, name: str) -> dict[str, Table]:
    splits = data if isinstance(data, dict) else {"train": data}
    return {
        split: Table(
            name=f"{name}[{split}]",
            rows=rows,
            labels={
                column: feature.names
                for column, feature in rows.features.items()
                if hasattr(feature, "names")
            },
        )
        for split, rows in splits.items()
    }


def _unreadable(name: str, error: Exception) -> Exception:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    kind = (
        FileNotFoundError if isinstance(error, (FileNotFoundError, ConnectionError)) else ValueError
    )
    return kind(f"{name}: no data set can be read: {reason[0]}")


def _some(rows: list, path: Path) -> list:
    if not rows:
        raise ValueError(f"{path}: an empty file: a task needs rows; add some or remove the file")
    return rows
