"""One YAML file (or a mapping) that lists many sources -> `TaskSource`s.

    defaults:                       # for every entry that does not say otherwise
      limit: 1000
    tasks:
      - name: boolq                 # default: the configuration's or the source's last name
        family: superglue           # default: the task's name
        source: some-name/on-hub    # or a path from the manifest's folder: a file or a folder
        config: boolq               # of the data set
        revision: 3de24cf8022e...   # of a data set on the hub: a whole commit hash, or a branch
        split: train                # default: train
        heldout_split: validation   # default: heldout, validation, ..., else cut off
        test_split: test            # default: test, where its rows have answers, else cut off
        template: {prompt: "{passage}\\n{question}?", response: "{answer}"}
        labels: {answer: [no, yes]}
      - source: flan.parquet
        columns: {prompt: inputs, response: targets}
        task_column: task_name      # one task for every value of this column ...
        family_column: task_family  # ... in the family that its first row names

    targets:                        # the same, for tasks that are judged and not mixed
      - source: my_own_task.jsonl
    expected: {superglue: 17}       # tasks of a family; where there are others, one line says so

`columns` maps prompt/response, inputs/targets, instruction/input/output or messages to the data's
own column names; `template` makes the two texts from any columns. `labels` are the class names of a
column of class numbers. `limit`, `heldout_limit` and `test_limit` bound the rows of each task, by a
seeded draw. Values are text as written: `no` does not mean false here, and `007` is not 7.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from taskpgm.tasks.data_sets import is_saved, read_named, read_saved
from taskpgm.tasks.folder import file_splits
from taskpgm.tasks.manifest_yaml import read_yaml
from taskpgm.tasks.messages import shortened
from taskpgm.tasks.readers import Table, split_ending
from taskpgm.tasks.row_schema import ROLES, checked_schema
from taskpgm.tasks.splits import SplitTables, TaskSource, choose_splits

KEYS: Mapping[str, type] = {
    "name": str,
    "family": str,
    "source": str,
    "config": str,
    "revision": str,
    "split": str,
    "heldout_split": str,
    "test_split": str,
    "columns": Mapping,
    "template": Mapping,
    "labels": Mapping,
    "task_column": str,
    "family_column": str,
    "limit": int,
    "heldout_limit": int,
    "test_limit": int,
}
KINDS = {str: "text", int: "a whole number", Mapping: "a mapping"}
LIMITS = ("limit", "heldout_limit", "test_limit")
SPLITS = ("split", "heldout_split", "test_split")


def read(path: Path, target: bool = False) -> list[TaskSource]:
    """The sources that a manifest file lists; `target`: all of them are judged and not mixed.

    Raises ValueError that names the file and the line or key."""
    spec = read_yaml(path)
    if spec is None:
        raise ValueError(f"{path}: an empty file: list sources under `tasks:`")
    return parse(spec, path.parent, str(path), target)


def parse(spec: Any, folder: Path, name: str, target: bool = False) -> list[TaskSource]:
    """The sources of a manifest that has been read. `folder`: what its paths are relative to;
    `name`: what errors call the manifest; `target`: as in `read`.

    Raises ValueError for an unknown key (it suggests the nearest), or a value of the wrong type."""
    if not isinstance(spec, Mapping):
        raise ValueError(f"{name}: a manifest is a mapping with `tasks:`, a list")
    _check_keys(spec, ("defaults", "tasks", "targets", "expected"), name)
    defaults = _checked(spec.get("defaults") or {}, f"{name}: defaults")
    found = []
    for key, of_targets in (("tasks", target), ("targets", True)):
        entries = spec.get(key)
        if key == "targets" and entries is None or target and entries is None and "targets" in spec:
            continue
        if not isinstance(entries, list | tuple) or not entries:
            raise ValueError(f"{name}: `{key}` must be a list of sources")
        found += _entries(entries, defaults, folder, f"{name}: {key[:-1]}", of_targets)
    note = _unexpected(spec.get("expected") or {}, found, name)
    return [replace(found[0], notes=(*found[0].notes, note)), *found[1:]] if note else found


def _unexpected(expected: Any, sources: Iterable[TaskSource], name: str) -> str:
    """A line on families that have another number of tasks than expected; "" if none has.

    Raises ValueError for what is no mapping of families to numbers."""
    if not isinstance(expected, Mapping) or not all(
        re.fullmatch(r"\d{1,9}", str(count)) for count in expected.values()
    ):
        raise ValueError(f"{name}: `expected` must be a mapping of families to numbers of tasks")
    found = Counter(source.family for source in sources)
    told = [
        f"{found[family]} tasks of {family} where {count} are expected"
        for family, count in expected.items()
        if found[family] != int(count)
    ]
    return f"{name}: {', '.join(told)}" if told else ""


def _entries(
    entries: Iterable[Any], defaults: Mapping[str, Any], folder: Path, name: str, target: bool
) -> list[TaskSource]:
    """The sources of one list of a manifest."""
    sources = []
    for number, entry in enumerate(entries, 1):
        where = f"{name} {number}"
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
            where += f" ({shortened(entry['name'])[1:-1]})"
        entry = _checked(entry, where)
        # `columns` or `template` of an entry replace both of the defaults: they are not merged.
        reading = {"columns", "template"} if {"columns", "template"} & set(entry) else set()
        inherited = {key: value for key, value in defaults.items() if key not in reading}
        sources += _sources({**inherited, **entry}, folder, where, target)
    return sources


def _sources(entry: Mapping[str, Any], folder: Path, where: str, target: bool) -> list[TaskSource]:
    if "source" not in entry:
        raise ValueError(f"{where}: no `source`: name a file, a folder or a data set on the hub")
    if "columns" in entry and "template" in entry:
        raise ValueError(f"{where}: `columns` and `template` both say how to read a row: keep one")
    if "family_column" in entry and "task_column" not in entry:
        raise ValueError(
            f"{where}: `family_column` needs a `task_column`: use `family`, or add one"
        )
    try:
        schema = checked_schema(
            entry.get("columns") or {}, entry.get("template"), entry.get("labels") or {}
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    splits = _open(entry, folder, where)
    tables = choose_splits(splits, where, *(entry.get(key) for key in SPLITS), target=target)
    options = {key: entry[key] for key in LIMITS if key in entry}
    options |= {"schema": schema, "test_is_named": "test_split" in entry, "target": target}
    if "task_column" in entry:
        return list(_by_column(entry, tables, options))
    last = entry.get("config") or Path(entry["source"]).name
    ending = split_ending(Path(last))
    name = entry.get("name") or file_name(ending[0] if ending else last)
    return [TaskSource(name, entry.get("family") or name, tables, **options)]


def _by_column(
    entry: Mapping[str, Any], tables: SplitTables, options: Mapping[str, Any]
) -> Iterable[TaskSource]:
    """One source per value of the entry's `task_column`, in order of first appearance."""
    train, heldout, test = (
        {} if table is None else _by_value(table, entry["task_column"]) for table in tables
    )
    families = tables.train.column(entry["family_column"]) if "family_column" in entry else None
    for value, indices in train.items():
        name = file_name(value)
        family = str(families[indices[0]]) if families else entry.get("family") or name
        parts = (
            table.select(groups[value]) if table is not None and value in groups else None
            for table, groups in ((tables.heldout, heldout), (tables.test, test))
        )
        own = SplitTables(tables.train.select(indices), *parts)
        yield TaskSource(name, family, own, **options)


def _by_value(table: Table, column: str) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, value in enumerate(table.column(column)):
        if value is None or not str(value).strip():
            raise ValueError(f"{table.where(index)}: no value in the `task_column` {column!r}")
        groups.setdefault(str(value), []).append(index)
    return groups


def _open(entry: Mapping[str, Any], folder: Path, where: str) -> dict[str, Table]:
    source, config, revision = entry["source"], entry.get("config"), entry.get("revision")
    path = folder / expand(source, where)
    if path.exists() and revision:
        raise ValueError(f"{where}: `revision` is of a data set on the hub, and {path} is here")
    try:
        if path.is_file() and split_ending(path):
            return file_splits(path)
        if path.is_dir():
            return read_saved(path) if is_saved(path) else read_named(str(path), config)
        if split_ending(path) or source.startswith((".", "/", "~")):
            raise FileNotFoundError(f"no such file or folder: {path}")
        return read_named(source, config, revision)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def expand(path: str, where: str) -> Path:
    """A path with `~` expanded. Raises ValueError for the home of an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"{where}: no home folder for {path[:80]!a}: write the path out"
        ) from error


def _checked(entry: Any, where: str) -> dict[str, Any]:
    """An entry with its limits as numbers. Raises ValueError for a bad key or value."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: must be a mapping of {', '.join(KEYS)}")
    _check_keys(entry, KEYS, where)
    checked = {}
    for key, value in entry.items():
        if KEYS[key] is int and isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value):
            value = int(value)
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):
            raise ValueError(f"{where}: `{key}` must be {KINDS[KEYS[key]]}, not {shortened(value)}")
        if isinstance(value, int) and value < 1:
            raise ValueError(f"{where}: `{key}` is {value}: a split of size 0 is no split")
        if value == "":
            raise ValueError(f"{where}: `{key}` is empty: leave it out")
        checked[key] = value
    _check_keys(entry.get("columns", {}), ROLES, f"{where}: columns")
    template = entry.get("template", {})
    _check_keys(template, ("prompt", "response"), f"{where}: template")
    if "template" in entry and set(template) != {"prompt", "response"}:
        raise ValueError(f"{where}: `template` needs both a prompt and a response")
    return checked


def _check_keys(given: Iterable[Any], known: Iterable[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key)[:60], sorted(known), 1, 0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise ValueError(f"{where}: unknown key {shortened(key)}: {hint}")


def file_name(text: str) -> str:
    """A text from the data ("ai2_arc/Easy:1.0") as a name that a folder can have."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "unnamed"
