"""Data as people have it -> tasks.

- A folder: every NAME.jsonl or NAME.parquet in it is a task, and so is every data set in it that
  `datasets` has saved (`save_to_disk`). NAME.heldout.jsonl (or .parquet) is the held-out split; or
  the rows carry a column `split`: "train" or "heldout" (validation, valid, dev and test mean that
  too). The folder that a file lies in, below the one named, is its family; at the top each is its
  own family.
- A saved data set, or the name of one on the hub: each configuration is a task.
- A manifest: YAML, or a mapping of the same shape, that lists many sources (`manifest.py`).
- "stdlib": the embedded suite (`stdlib.py`).

What a row may look like is in `rows.py`. Where there is no held-out split, one is cut off by a
seeded draw, and `Task.notes` says so.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from taskpgm.tasks import manifest
from taskpgm.tasks.source import Source, load, pick_splits
from taskpgm.tasks.stdlib import stdlib_tasks
from taskpgm.tasks.tables import READERS, configs, is_saved, read_file, read_named, read_saved
from taskpgm.tasks.task import Task


def load_tasks(
    path_or_spec: str | Path | Mapping, *, heldout_fraction: float = 0.1, seed: int = 0
) -> list[Task]:
    """Tasks from "stdlib", a folder, a manifest, or a data set on disk or on the hub (see above).

    Args:
      heldout_fraction: the share of rows cut off as held-out where the data bring no such split.
      Rows
        with the same prompt stay together.
      seed: of those cuts, of `limit`s, and of the embedded suite.

    Raises FileNotFoundError or ValueError with one line that names the file, the line or the key.
    """
    if not 0 < heldout_fraction < 1:
        raise ValueError(
            f"heldout_fraction={heldout_fraction} leaves a split of size 0: use one between 0 and 1"
        )
    if path_or_spec == "stdlib":
        return stdlib_tasks(seed)
    if isinstance(path_or_spec, Mapping):
        said, sources = "the manifest", manifest.parse(path_or_spec, Path("."), "manifest")
    else:
        said, sources = str(path_or_spec), _sources(str(path_or_spec))
    _check(sources, said)
    return [load(source, heldout_fraction, seed) for source in sources]


def _sources(spec: str) -> list[Source]:
    path = Path(spec).expanduser()
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return manifest.read(path)
    if path.is_file() and path.suffix in READERS:
        return [_source(path, path.parent)]
    if path.is_dir():
        return [_source(path, path.parent)] if is_saved(path) else _folder(path)
    if path.exists():
        raise ValueError(
            f"{spec}: tasks are read from .jsonl, .parquet, .yaml, or a folder of those"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", spec) or spec.startswith(".") or path.suffix:
        raise FileNotFoundError(f"no such path: {spec}")
    return [
        Source(
            manifest.file_name(config),
            spec,
            *pick_splits(read_named(spec, config), spec, None, None),
        )
        for config in configs(spec)
    ]


def _folder(root: Path) -> list[Source]:
    found, orphans = [], set()
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if any(part.startswith(".") for part in inside.parts):
            continue
        if any(is_saved(parent) for parent in path.parents if parent.is_relative_to(root)):
            continue
        if path.is_dir() and is_saved(path):
            found.append(path)
        elif path.is_file() and path.suffix in READERS:
            (orphans.add if path.stem.endswith(".heldout") else found.append)(path)
    names = {path.parent / path.stem for path in found}
    for path in sorted(orphans):
        if path.parent / path.stem.removesuffix(".heldout") not in names:
            raise ValueError(f"{path}: a held-out split without its training file beside it")
    if not found:
        raise ValueError(f"{root}: no .jsonl or .parquet file and no saved data set in this folder")
    return [_source(path, root) for path in found]


def _source(path: Path, root: Path) -> Source:
    saved = path.is_dir()
    name = path.name if saved else path.stem
    train, heldout = pick_splits(
        read_saved(path) if saved else read_file(path), str(path), None, None
    )
    family = path.parent.relative_to(root).as_posix()
    return Source(name, name if family == "." else family, train, heldout)


def _check(sources: list[Source], said: str) -> None:
    """Names are unique, fit to be folders' names, and at least two."""
    first: dict[str, Source] = {}
    for source in sources:
        # Adapters lie in folders of these names, and some file systems do not tell cases apart.
        other = first.setdefault(source.name.casefold(), source)
        if other is not source:
            raise ValueError(
                f"duplicate task name {source.name!r}: {other.train.name} and {source.train.name}; "
                "rename one"
            )
        if (
            not source.name.strip()
            or source.name[0] == "."
            or re.search(r'[\\/:*?"<>|\0]', source.name)
        ):
            raise ValueError(f"task name {source.name!r} cannot name a folder: rename it")
    if len(sources) < 2:
        raise ValueError(
            f"only one task ({sources[0].name}) in {said}: a mixture needs two or more; add another"
        )
