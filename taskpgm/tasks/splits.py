"""A task's three splits: rows for training, for choosing the mixture, and for judging it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import NamedTuple
from zlib import crc32

import numpy as np

from taskpgm.tasks.messages import shortened
from taskpgm.tasks.readers import Table
from taskpgm.tasks.row_schema import NoResponse, RowSchema, read_row
from taskpgm.tasks.stream import draw
from taskpgm.tasks.task import Example, Task

# Names for the three splits; if a data set has several names of one split, the first is used.
SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "heldout": ("heldout", "held_out", "validation", "valid", "val", "dev"),
    "test": ("test",),
}
SPOKEN = {"train": "training", "heldout": "held-out", "test": "test"}


class SplitTables(NamedTuple):
    """The tables of a task's splits; None for one that the data do not have."""

    train: Table
    heldout: Table | None = None
    test: Table | None = None


@dataclass(frozen=True)
class TaskSource:
    """Where one task's rows are, before they are read.

    `limit`, `heldout_limit`, `test_limit`: at most this many rows of each split, by a seeded draw.
    `test_is_named`: somebody asked for this test split, so it must be usable.
    `target`: the task is judged and not mixed; see `read_target`.
    """

    name: str
    family: str
    tables: SplitTables
    schema: RowSchema = RowSchema()
    limit: int | None = None
    heldout_limit: int | None = None
    test_limit: int | None = None
    test_is_named: bool = False
    notes: tuple[str, ...] = ()
    target: bool = False


def role_of(split: object) -> str | None:
    """ "train", "heldout" or "test" for a data set's name of a split; None for another name."""
    plain = split.strip().lower() if isinstance(split, str) else split
    return next((role for role, names in SPLIT_NAMES.items() if plain in names), None)


def choose_splits(
    splits: Mapping[str, Table],
    name: str,
    split: str | None = None,
    heldout_split: str | None = None,
    test_split: str | None = None,
    target: bool = False,
) -> SplitTables:
    """The tables of a data set by role.

    A split that is named counts; else the first whose name is in `SPLIT_NAMES`. Only a data set's
    single split may have any other name, and then it is for training. A target needs no training
    split: what it has stands in that place, for `read_target` to deal out.

    Raises ValueError for a split that does not exist, for one with two roles, and if nothing says
    which split is for training: one called test or validation is trained on only if it is named.
    """
    named = {"train": split, "heldout": heldout_split, "test": test_split}
    available = ", ".join(sorted(splits))
    for asked in named.values():
        if asked is not None and asked not in splits:
            raise ValueError(f"{name}: no split {asked!r}: there are {available}")
    free = [key for key in splits if key not in named.values()]
    chosen = {role: key for role, key in named.items() if key is not None}
    for role, names in SPLIT_NAMES.items():
        candidates = splits if role == "train" else free
        known = [key for n in names for key in candidates if key.strip().lower() == n]
        if role not in chosen and known:
            chosen[role] = known[0]
    if "train" not in chosen and target and chosen:
        chosen["train"] = chosen.pop("heldout" if "heldout" in chosen else "test")
    if "train" not in chosen:
        if len(splits) != 1 or chosen or _for_evaluation(next(iter(splits))):
            raise ValueError(
                f"{name}: which split is for training? There is no split 'train', and none called "
                f"test or validation is trained on unasked: there are {available}; name one with "
                "`split` in a manifest"
            )
        chosen["train"] = next(iter(splits))
    for one, other in (("train", "heldout"), ("train", "test"), ("heldout", "test")):
        if one in chosen and chosen[one] == chosen.get(other):
            raise ValueError(
                f"{name}: {chosen[one]!r} cannot be the {SPOKEN[one]} and the {SPOKEN[other]} "
                "split at once"
            )
    return SplitTables(**{role: splits[key] for role, key in chosen.items()})


def by_split_column(table: Table) -> dict[str, Table]:
    """The rows of a file by their column `split`; all are "train" if there is no such column.

    Raises ValueError for a value that names no split, and if only some rows have the column.
    """
    try:
        marks = table.column("split")
    except ValueError:
        return {"train": table}
    if all(mark is None for mark in marks):
        return {"train": table}
    places: dict[str, list[int]] = {}
    for index, mark in enumerate(marks):
        role = role_of(mark)
        if role is None:
            raise ValueError(
                f"{table.where(index)}: `split` is {shortened(mark)}: it must be 'train', "
                "'heldout' or 'test'"
            )
        places.setdefault(role, []).append(index)
    return {role: table.select(indices) for role, indices in places.items()}


def _for_evaluation(split: str) -> bool:
    return any(word in split.lower() for word in ("test", "val", "dev", "held"))


def read_task(source: TaskSource, heldout_fraction: float, test_fraction: float, seed: int) -> Task:
    """Reads a task's rows and makes its three splits disjoint by prompt.

    If a prompt is in two given splits, rows with it are dropped from one of them: from the held-out
    split in favour of the test split, and from the training split in favour of both. A missing
    split is cut off the training rows by a seeded draw. `Task.notes` says how many rows this moved.

    Raises ValueError for bad rows, and for a split that is, or becomes, empty.
    """
    seed = crc32(
        f"{seed}/{source.name}".encode()
    )  # tasks are split independently, and reproducibly
    notes = list(source.notes)
    given = {"heldout": _read(source.tables.heldout, source, source.heldout_limit, seed)}
    try:
        given["test"] = _read(source.tables.test, source, source.test_limit, seed)
    except NoResponse as error:
        if source.test_is_named:
            raise
        given["test"] = None
        notes.append(f"the test split is not used, its rows have no answers ({error})")
    fractions = {
        role: fraction
        for role, fraction in (("heldout", heldout_fraction), ("test", test_fraction))
        if given[role] is None
    }
    # Enough rows that `limit` of them are left after the cuts.
    limit = source.limit
    wanted = None if limit is None else ceil(limit / (1 - sum(fractions.values())))
    train = _read(source.tables.train, source, wanted, seed)
    assert train is not None
    splits = {"train": train, **{role: rows for role, rows in given.items() if rows is not None}}
    notes += _make_disjoint(splits, source)
    size = len(splits["train"])
    splits |= _cut(splits["train"], fractions, seed, source)
    for role, fraction in fractions.items():
        notes.append(
            f"no {SPOKEN[role]} split: {len(splits[role])} of {size} rows cut off (fraction "
            f"{fraction:g}, seeded)"
        )
    limits = {"train": limit, "heldout": source.heldout_limit, "test": source.test_limit}
    for role, most in limits.items():
        splits[role] = splits[role][:most]
        if most == len(splits[role]):
            notes.append(f"limited to {most} {SPOKEN[role]} rows (seeded)")
    return Task(
        source.name,
        source.family,
        tuple(splits["train"]),
        tuple(splits["heldout"]),
        tuple(splits["test"]),
        tuple(notes),
    )


def read_target(source: TaskSource, seed: int) -> Task:
    """Reads a task that is judged and not mixed: held-out rows decide, test rows judge.

    Rows of a training split are trained on by nobody, so they stand in for the split that is
    missing; where both are, half of them for each, by a seed. `Task.notes` says so.

    Raises ValueError for bad rows, and for a split that is, or becomes, empty.
    """
    seed = crc32(f"{seed}/{source.name}".encode())
    notes = list(source.notes)
    rest = _read(source.tables.train, source, source.limit, seed) or []
    heldout = _read(source.tables.heldout, source, source.heldout_limit, seed)
    test = _read(source.tables.test, source, source.test_limit, seed)
    if heldout is None and test is None:
        parts = _cut(rest, {"test": 0.5}, seed, source)
        heldout, test = parts["train"], parts["test"]
        notes.append(
            f"a target: {len(heldout)} of its {len(rest)} rows decide, the others judge (seeded)"
        )
    splits = {"heldout": rest if heldout is None else heldout, "test": test or rest}
    notes += _make_disjoint(splits, source)
    heldout = tuple(splits["heldout"][: source.heldout_limit])
    test = tuple(splits["test"][: source.test_limit])
    return Task(source.name, source.family, (), heldout, test, tuple(notes), target=True)


def _read(
    table: Table | None, source: TaskSource, limit: int | None, seed: int
) -> list[Example] | None:
    if table is None:
        return None
    size = len(table.rows)
    if size == 0:
        raise ValueError(f"{table.name}: a split of size 0: give it rows, or leave it out")
    schema = replace(source.schema, labels={**table.labels, **source.schema.labels})
    count = size if limit is None else min(limit, size)
    indices = range(size) if count == size else np.sort(draw(size, count, seed=seed)).tolist()
    return [read_row(table.row(i), table.where(i), schema) for i in indices]


def _make_disjoint(splits: dict[str, list[Example]], source: TaskSource) -> list[str]:
    """Drops, in place, held-out rows whose prompt is also in the test split, and training rows
    whose prompt is in either. Returns notes."""
    notes = []
    reserved: set[object] = set()
    for role, above in (("test", ""), ("heldout", "test"), ("train", "held-out or test")):
        if role not in splits:
            continue
        rows = splits[role]
        kept = [row for row in rows if row.context not in reserved]
        if len(kept) < len(rows):
            dropped = len(rows) - len(kept)
            notes.append(
                f"{dropped} of {len(rows)} {SPOKEN[role]} rows dropped: their prompts also stand "
                f"in {above} rows"
            )
            if not kept:
                table = source.tables.heldout if role == "heldout" else None
                table = table or source.tables.train
                raise ValueError(
                    f"{table.name}: every prompt also stands in {above} rows, which leaves a "
                    f"{SPOKEN[role]} split of size 0: give it other rows"
                )
        splits[role] = kept
        reserved.update(row.context for row in kept)
    return notes


def _cut(
    rows: Sequence[Example], fractions: Mapping[str, float], seed: int, source: TaskSource
) -> dict[str, list[Example]]:
    """Cuts the missing splits off the training rows: {"train": rows left, role: rows cut off}.

    Rows with the same prompt stay together, and each part keeps the order of its rows.
    """
    groups: dict[object, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.context, []).append(index)
    if len(groups) <= len(fractions):
        missing = " and a ".join(SPOKEN[role] for role in fractions)
        raise ValueError(
            f"{source.tables.train.name}: {len(rows)} row(s) with {len(groups)} different "
            f"prompt(s) are too few to cut off a {missing} split: add rows, or a file for each "
            "split"
        )
    shuffled = np.random.default_rng(seed).permutation(len(groups)).tolist()
    members = list(groups.values())
    parts: dict[str, list[int]] = {}
    for later, (role, fraction) in enumerate(fractions.items(), 1):
        part: list[int] = []
        # At least one group is left for training, and for each split that is still to be cut off.
        while len(part) < max(1, round(fraction * len(rows))) and (
            not part or len(shuffled) > len(fractions) - later + 1
        ):
            part += members[shuffled.pop(0)]
        parts[role] = sorted(part)
    parts["train"] = _without(range(len(rows)), parts.values())
    return {role: [rows[i] for i in part] for role, part in parts.items()}


def _without(indices: Iterable[int], parts: Iterable[Sequence[int]]) -> list[int]:
    taken = {i for part in parts for i in part}
    return [i for i in indices if i not in taken]
