"""Data in the formats that people have -> tasks.

- A folder: every file in it is a task (.jsonl, .json, .csv, .tsv, .parquet, all but the last also
  compressed, as .jsonl.gz), and so is every data set in it that `datasets` has saved
  (`save_to_disk`). NAME.heldout.jsonl and NAME.test.jsonl are the other splits of NAME.jsonl; or
  the rows have a column `split`: "train", "heldout" or "test" ("validation", "valid", "val" and
  "dev" mean heldout). A task's family is the subfolder that holds it; a task that is in no
  subfolder is a family of its own.
- A saved data set, or the name of one on the hub: each configuration is a task.
- A manifest: YAML, or a mapping of the same shape, that lists many sources (`manifest.py`).
- "stdlib": the embedded suite (`stdlib.py`).

Targets, tasks that are judged and not mixed, come from the same kinds of data, or from the
`targets` of a manifest. They need no training split: see `splits.read_target`.

`row_schema.py` says what a row may look like. `splits.py` makes the three splits: a missing one is
cut off the training rows by a seeded draw, and `Task.notes` says so.
"""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from taskpgm.tasks import manifest
from taskpgm.tasks.data_sets import configurations, is_saved, read_named, read_saved
from taskpgm.tasks.folder import file_splits, read_folder
from taskpgm.tasks.messages import printable
from taskpgm.tasks.readers import ENDINGS, split_ending
from taskpgm.tasks.splits import TaskSource, choose_splits, read_target, read_task
from taskpgm.tasks.stdlib import stdlib_tasks
from taskpgm.tasks.task import Task

LONGEST_NAME = 200  # bytes; file systems allow 255, and suffixes are added


def load_tasks(
    path_or_spec: str | Path | Mapping,
    *,
    heldout_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> list[Task]:
    """Tasks from "stdlib", a folder, a manifest, or a data set on disk or on the hub (see above).

    Args:
      heldout_fraction, test_fraction: the share of training rows cut off as held-out or test split
        where the data have no such split. Rows with the same prompt stay together.
      seed: for those cuts, for `limit`s, and for the embedded suite.

    Raises FileNotFoundError or ValueError with one line that names the file, the line or the key.
    """
    for key, fraction in (("heldout", heldout_fraction), ("test", test_fraction)):
        if not 0 < fraction < 1:
            raise ValueError(
                f"{key}_fraction={fraction} leaves a split of size 0: use one between 0 and 1"
            )
    if heldout_fraction + test_fraction >= 1:
        raise ValueError(
            f"heldout_fraction={heldout_fraction} and test_fraction={test_fraction} leave a "
            "training split of size 0: their sum must be less than 1"
        )
    if path_or_spec == "stdlib":
        return stdlib_tasks(seed)
    try:
        if isinstance(path_or_spec, Mapping):
            origin, sources = "the manifest", manifest.parse(path_or_spec, Path("."), "manifest")
        else:
            origin, sources = str(path_or_spec), _sources(str(path_or_spec))
        _check_names(sources)
        if sum(not source.target for source in sources) < 2:
            raise ValueError(
                f"only one task ({sources[0].name}) in {origin}: a mixture needs two or more; add "
                "another"
            )
        return [
            read_target(source, seed)
            if source.target
            else read_task(source, heldout_fraction, test_fraction, seed)
            for source in sources
        ]
    except (ValueError, FileNotFoundError) as error:
        if str(error).isprintable():
            raise
        raise type(error)(printable(str(error))) from error  # a file name may contain anything


def load_targets(path: str | Path, *, seed: int = 0) -> list[Task]:
    """Targets from whatever `load_tasks` reads: all that is in it is judged, and nothing mixed.

    Raises as `load_tasks`.
    """
    if path == "stdlib":
        return [replace(task, train=(), target=True) for task in stdlib_tasks(seed)]
    try:
        sources = _sources(str(path), target=True)
        _check_names(sources)
        return [read_target(source, seed) for source in sources]
    except (ValueError, FileNotFoundError) as error:
        if str(error).isprintable():
            raise
        raise type(error)(printable(str(error))) from error


def _sources(spec: str, target: bool = False) -> list[TaskSource]:
    path = manifest.expand(spec, spec)
    try:
        if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
            return manifest.read(path, target)
        if path.is_file() and split_ending(path):
            tables = choose_splits(file_splits(path), spec, target=target)
            return [TaskSource(path.stem, path.stem, tables, target=target)]
        if path.is_dir():
            if is_saved(path):
                tables = choose_splits(read_saved(path), spec, target=target)
                return [TaskSource(path.name, path.name, tables, target=target)]
            return read_folder(path, target)
        if path.exists():
            raise ValueError(f"{spec}: tasks are read from .yaml, a folder, or {ENDINGS}")
    except OSError as error:
        if error.filename is None:
            raise
        raise ValueError(f"{error.filename}: cannot be read: {error.strerror}") from error
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", spec) or spec.startswith(".") or path.suffix:
        raise FileNotFoundError(f"no such path: {spec}")
    return [
        TaskSource(
            manifest.file_name(config),
            spec,
            choose_splits(read_named(spec, config), spec, target=target),
            target=target,
        )
        for config in configurations(spec)
    ]


def _check_names(sources: list[TaskSource]) -> None:
    """Names are unique and can name a folder."""
    first: dict[str, TaskSource] = {}
    for source in sources:
        name = source.name
        # Adapters are stored in folders of these names, and some file systems ignore case or
        # Unicode composition.
        other = first.setdefault(unicodedata.normalize("NFC", name.casefold()), source)
        if other is not source:
            raise ValueError(
                f"duplicate task name {name!r}: {other.tables.train.name} and "
                f"{source.tables.train.name}; rename one"
            )
        reason = None
        if not name.strip() or name[0] == "." or re.search(r'[\\/:*?"<>|\0]', name):
            reason = "cannot name a folder"
        elif re.search("[\ud800-\udfff]", name + source.family):
            reason = "or its family holds a lone surrogate, which is no character"
        elif len(name.encode()) > LONGEST_NAME:
            name, reason = name[:60] + "...", f"is longer than {LONGEST_NAME} bytes"
        if reason is not None:
            raise ValueError(f"{source.tables.train.name}: task name {name!a} {reason}: rename it")
