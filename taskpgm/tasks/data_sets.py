"""Data sets of the `datasets` library, saved to disk or on the hub -> tables."""

import json
from pathlib import Path
from typing import Any

from taskpgm.tasks.readers import Table, class_labels, first_line


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the `datasets` library."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def read_saved(path: Path) -> dict[str, Table]:
    """The splits of a data set saved to disk; one without splits is called "train"."""
    import datasets

    try:
        for state in sorted([*path.glob("state.json"), *path.glob("*/state.json")]):
            if (
                json.loads(state.read_text()).get("_data_files") == []
            ):  # which `datasets` fails to load
                raise ValueError(f"{state.parent.name!r} is a split of size 0: give it rows")
        return _tables(datasets.load_from_disk(str(path)), str(path))
    except Exception as error:  # the library's own, pyarrow's and fsspec's, with no common parent
        raise _unreadable(str(path), error) from error


def read_named(name: str, config: str | None, revision: str | None = None) -> dict[str, Table]:
    """The splits of a data set on the hub, or of a local folder with the layout of one."""
    import datasets

    try:
        return _tables(datasets.load_dataset(name, config, revision=revision), name)
    except Exception as error:  # as above, and errors of the network
        raise _unreadable(f"{name} ({config})" if config else name, error) from error


def configurations(name: str) -> list[str]:
    """The configurations of a data set on the hub."""
    import datasets

    try:
        return list(datasets.get_dataset_config_names(name))
    except Exception as error:
        raise _unreadable(name, error) from error


def _tables(data: Any, name: str) -> dict[str, Table]:
    splits = data if isinstance(data, dict) else {"train": data}
    return {
        split: Table(f"{name}[{split}]", rows, labels=class_labels(rows))
        for split, rows in splits.items()
    }


def _unreadable(name: str, error: Exception) -> Exception:
    missing = isinstance(error, FileNotFoundError | ConnectionError)
    kind = FileNotFoundError if missing else ValueError
    return kind(f"{name}: no data set can be read: {first_line(error)}")
