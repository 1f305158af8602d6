"""A folder of files -> the tasks in it: which files belong together, and which are not read."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from taskpgm.tasks.data_sets import is_saved, read_saved
from taskpgm.tasks.readers import ENDINGS, Table, read_table, split_ending
from taskpgm.tasks.splits import SPLIT_NAMES, TaskSource, by_split_column, choose_splits, role_of

SHARD = re.compile(r".+-\d{5}-of-\d{5}")
NOT_READ_NAMED = 8  # files that a note lists by name


def read_folder(root: Path, target: bool = False) -> list[TaskSource]:
    """One task for every file or saved data set in a folder; the notes of the first task list the
    files that are not read. Targets need no training file.

    NAME.heldout.jsonl and NAME.test.jsonl (or another name or ending of a split) belong to NAME;
    train.jsonl and test.jsonl in a folder NAME as well. Linked folders are followed.

    Raises ValueError for a split without a training file, for two files of one split, for names
    that look like splits (NAME_test.jsonl) or shards, and for broken links.
    """
    saved: list[Path] = []
    files: dict[Path, dict[str, Path]] = {}  # by task, then by role
    unread: list[Path] = []
    for path in _walk(root):
        if path.is_dir():
            saved.append(path)
            continue
        if path.is_symlink() and not path.exists():
            raise ValueError(f"{path}: a link to a file that does not exist: fix or remove it")
        ending = split_ending(path)
        if ending is None or not path.is_file():
            unread.append(path)
            continue
        _check_shard(path, ending[0])
        task, role = _task_of(path, ending[0])
        _put(files.setdefault(task, {}), role, path)
    _check_names(files, target)
    if not files and not saved:
        raise ValueError(
            f"{root}: no file that ends in {ENDINGS} and no saved data set in this folder"
        )
    sources = [_saved_source(path, root, target) for path in saved]
    sources += [_source(task, parts, root, target) for task, parts in files.items()]
    sources.sort(key=lambda pair: pair[0])
    first, *rest = (source for _, source in sources)
    return [replace(first, notes=_not_read(unread, root)), *rest]


def file_splits(path: Path) -> dict[str, Table]:
    """The splits of one file's task: those in its column `split`, and those in files next to it.

    A file whose own name says that it is a held-out or test split is that one split.
    """
    ending = split_ending(path)
    if ending is None:
        raise ValueError(f"{path}: rows are read from {ENDINGS}")
    task, role = _task_of(path, ending[0])
    if role != "train":
        return {role: read_table(path)}
    files = {role: path}
    for beside in sorted(path.parent.iterdir()):
        other = split_ending(beside)
        if other is not None and beside != path and beside.is_file():
            owner, role = _task_of(beside, other[0])
            if owner == task and role != "train":
                _put(files, role, beside)
    return _read_splits(files)


def _put(files: dict[str, Path], role: str, path: Path) -> None:
    other = files.setdefault(role, path)
    if other is not path:
        raise ValueError(f"{path}: {other.name} next to it is the same split: keep one")


def _read_splits(files: Mapping[str, Path]) -> dict[str, Table]:
    train = files.get("train")
    splits = by_split_column(read_table(train)) if train else {}
    for role in files.keys() - {"train"}:
        if role in splits and train:
            raise ValueError(
                f"{files[role]}: rows of {train.name} are marked {role} as well: keep one"
            )
        splits[role] = read_table(files[role])
    return splits


def _walk(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Files and saved data sets below a folder, sorted by name; hidden ones are skipped.

    Links to folders are followed, unless they lead back to a folder above.
    """
    above = (*above, os.path.realpath(folder))
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir() or is_saved(path):
            yield path
        elif os.path.realpath(path) not in above:
            yield from _walk(path, above)


def _task_of(path: Path, stem: str) -> tuple[Path, str]:
    """The path that identifies a file's task, and which of its splits the file is."""
    if role_of(stem) is not None:
        return path.parent, role_of(stem) or "train"
    base, _, split = stem.rpartition(".")
    if base and role_of(split) is not None:
        return path.parent / base, role_of(split) or "train"
    return path.parent / stem, "train"


def _check_shard(path: Path, stem: str) -> None:
    if SHARD.fullmatch(stem):
        raise ValueError(
            f"{path}: one of several shards of a data set: name its folder as a `source` in a "
            "manifest, or join the shards into one file"
        )


def _check_names(files: dict[Path, dict[str, Path]], target: bool) -> None:
    for task, parts in files.items():
        if "train" not in parts and not target:
            role, path = next(iter(parts.items()))
            raise ValueError(f"{path}: a {role} split without its training file next to it")
        for names in SPLIT_NAMES.values():
            for name in names:
                for mark in "_-":
                    looks = task.with_name(f"{task.name}{mark}{name}")
                    if looks in files:
                        raise ValueError(
                            f"{next(iter(files[looks].values()))}: looks like a split of "
                            f"{task.name}: call it {task.name}.{name}"
                            f"{next(iter(files[looks].values())).suffix}, or rename it"
                        )


def _source(task: Path, files: dict[str, Path], root: Path, target: bool) -> tuple[str, TaskSource]:
    """A task, after the path that it is sorted by."""
    tables = choose_splits(_read_splits(files), str(next(iter(files.values()))), target=target)
    return task.as_posix(), TaskSource(*_named(task, root), tables, target=target)


def _saved_source(path: Path, root: Path, target: bool) -> tuple[str, TaskSource]:
    tables = choose_splits(read_saved(path), str(path), target=target)
    return path.as_posix(), TaskSource(*_named(path, root), tables, target=target)


def _named(task: Path, root: Path) -> tuple[str, str]:
    """A task's name and family; the family is its folder below `root`, or else its own name."""
    if task == root:
        return root.resolve().name, root.resolve().name
    family = task.parent.relative_to(root).as_posix()
    return task.name, task.name if family == "." else family


def _not_read(paths: list[Path], root: Path) -> tuple[str, ...]:
    if not paths:
        return ()
    names = [path.relative_to(root).as_posix() for path in paths[:NOT_READ_NAMED]]
    more = f" and {len(paths) - len(names)} more" if len(paths) > len(names) else ""
    return (f"not read (rows are in {ENDINGS}): {', '.join(names)}{more}",)
