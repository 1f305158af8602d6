"""One YAML file (or a mapping) that lists many sources -> `Source`s.

    defaults:                       # for every entry that does not say otherwise
      limit: 1000
    tasks:
      - name: boolq                 # default: the configuration's or the source's last name
        family: superglue           # default: the task's name
        source: some-name/on-hub    # or a path from the manifest's folder: a file or a folder
        config: boolq               # of the data set
        split: train                # default: train
        heldout_split: validation   # default: heldout, validation, ..., else cut off
        template: {prompt: "{passage}\\n{question}?", response: "{answer}"}
        labels: {answer: ["no", "yes"]}
      - source: flan.parquet
        columns: {prompt: inputs, response: targets}
        task_column: task_name      # one task for every value of this column ...
        family_column: task_family  # ... in the family that its first row names

`columns` says which of the data's columns is which of prompt/response, inputs/targets,
instruction/input/output, messages; `template` writes the two texts from any columns. `labels` are
the words for a column of numbers. `limit` and `heldout_limit` bound the rows of each task, by a
seeded draw.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from taskpgm.tasks.rows import ROLES, Form
from taskpgm.tasks.source import Source, pick_splits
from taskpgm.tasks.tables import READERS, Table, is_saved, read_file, read_named, read_saved

KEYS = {
    "name": str,
    "family": str,
    "source": str,
    "config": str,
    "split": str,
    "heldout_split": str,
    "columns": Mapping,
    "template": Mapping,
    "labels": Mapping,
    "task_column": str,
    "family_column": str,
    "limit": int,
    "heldout_limit": int,
}


def read(path: Path) -> list[Source]:
    """The sources a manifest file lists. Raises ValueError naming the file and the line or key."""
    import yaml

    try:
        spec = yaml.safe_load(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{path}{line}: malformed YAML: {problem}") from error
    if spec is None:
        raise ValueError(f"{path}: an empty file: list sources under `tasks:`")
    return parse(spec, path.parent, str(path))


def parse(spec: Any, folder: Path, name: str) -> list[Source]:
    """The sources of a manifest already read. `folder`: where its paths start; `name`: of the
    manifest, for errors. Raises ValueError for an unknown key (naming the nearest), or a value of
    the wrong type."""
    if not isinstance(spec, Mapping):
        raise ValueError(f"{name}: a manifest is a mapping with `tasks:`, a list")
    _check_keys(spec, ("defaults", "tasks"), name)
    defaults, entries = spec.get("defaults") or {}, spec.get("tasks")
    if not isinstance(entries, (list, tuple)) or not entries:
        raise ValueError(f"{name}: `tasks` must be a list of sources")
    _check_entry(defaults, f"{name}: defaults")
    sources = []
    for number, entry in enumerate(entries, 1):
        where = f"{name}: task {number}"
        if isinstance(entry, Mapping) and "name" in entry:
            where += f" ({entry['name']})"
        _check_entry(entry, where)
        # An entry that says how to read a row says all of it: the defaults' way does not mix in.
        reading = {"columns", "template"} if {"columns", "template"} & set(entry) else set()
        inherited = {key: value for key, value in defaults.items() if key not in reading}
        sources += _sources({**inherited, **entry}, folder, where)
    return sources


def _sources(entry: Mapping[str, Any], folder: Path, where: str) -> list[Source]:
    if "source" not in entry:
        raise ValueError(f"{where}: no `source`: name a file, a folder or a data set on the hub")
    if "columns" in entry and "template" in entry:
        raise ValueError(f"{where}: `columns` and `template` both say how to read a row: keep one")
    splits = _open(entry["source"], entry.get("config"), folder, where)
    train, heldout = pick_splits(splits, where, entry.get("split"), entry.get("heldout_split"))
    form = Form(entry.get("columns") or {}, entry.get("template"), entry.get("labels") or {})
    limits = {key: entry[key] for key in ("limit", "heldout_limit") if key in entry}
    if "task_column" in entry:
        return list(_by_column(entry, train, heldout, form, limits))
    last = entry.get("config") or Path(entry["source"]).name.removesuffix(".jsonl")
    name = entry.get("name") or file_name(last.removesuffix(".parquet"))
    return [Source(name, entry.get("family") or name, train, heldout, form, **limits)]


def _by_column(
    entry: Mapping[str, Any], train: Table, heldout: Table | None, form: Form, limits: Mapping
) -> Iterable[Source]:
    """One source per value of the entry's `task_column`, in order of first appearance."""
    groups = [
        _groups(table, entry["task_column"]) for table in (train, heldout) if table is not None
    ]
    families = train.column(entry["family_column"]) if "family_column" in entry else None
    for value, indices in groups[0].items():
        name = file_name(value)
        family = str(families[indices[0]]) if families else entry.get("family") or name
        held = groups[1].get(value) if heldout is not None else None
        yield Source(
            name, family, train.select(indices), held and heldout.select(held), form, **limits
        )


def _groups(table: Table, column: str) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for index, value in enumerate(table.column(column)):
        groups.setdefault(str(value), []).append(index)
    return groups


def _open(source: str, config: str | None, folder: Path, where: str) -> dict[str, Table]:
    path = folder / Path(source).expanduser()
    try:
        if path.is_file() and path.suffix in READERS:
            return read_file(path)
        if path.is_dir():
            return read_saved(path) if is_saved(path) else read_named(str(path), config)
        if path.suffix in READERS or source.startswith((".", "/", "~")):
            raise FileNotFoundError(f"no such file or folder: {path}")
        return read_named(source, config)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{where}: {error}") from error


def _check_entry(entry: Any, where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where}: must be a mapping of {', '.join(KEYS)}")
    _check_keys(entry, KEYS, where)
    for key, value in entry.items():
        if not isinstance(value, KEYS[key]) or isinstance(value, bool):
            kind = {str: "text", int: "a whole number", Mapping: "a mapping"}[KEYS[key]]
            raise ValueError(f"{where}: `{key}` must be {kind}, not {value!r}")
        if KEYS[key] is int and value < 1:
            raise ValueError(f"{where}: `{key}` is {value}: a split of size 0 is no split")
    _check_keys(entry.get("columns", {}), ROLES, f"{where}: columns")
    template = entry.get("template", {})
    _check_keys(template, ("prompt", "response"), f"{where}: template")
    if template and set(template) != {"prompt", "response"}:
        raise ValueError(f"{where}: `template` needs both a prompt and a response")


def _check_keys(given: Iterable[Any], known: Iterable[str], where: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), sorted(known), 1, 0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise ValueError(f"{where}: unknown key {key!r}: {hint}")


def file_name(text: str) -> str:
    """A name made from data ("ai2_arc/Easy:1.0") fit to be a folder's."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.") or "unnamed"
