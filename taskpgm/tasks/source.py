"""Where one task's rows come from, and how they become a task: splits, limits, notes."""

from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np

from taskpgm.tasks.rows import Form, example
from taskpgm.tasks.stream import draw
from taskpgm.tasks.tables import HELDOUT_NAMES, Table
from taskpgm.tasks.task import Example, Task


@dataclass(frozen=True)
class Source:
    """One task's tables. `limit`s: at most so many rows of each split, drawn with a seed."""

    name: str
    family: str
    train: Table
    heldout: Table | None = None
    form: Form = Form()
    limit: int | None = None
    heldout_limit: int | None = None


def pick_splits(
    splits: dict[str, Table], name: str, split: str | None, heldout_split: str | None
) -> tuple[Table, Table | None]:
    """The training and the held-out table of a data set: those named, else "train" (or the only
    one) and the first of `HELDOUT_NAMES`. Raises ValueError for a split that the data set does not
    have."""
    for asked in (split, heldout_split):
        if asked is not None and asked not in splits:
            raise ValueError(f"{name}: no split {asked!r}: there are {', '.join(sorted(splits))}")
    if split is None:
        split = "train" if "train" in splits else next(iter(splits))
        if split != "train" and len(splits) > 1:
            raise ValueError(
                f"{name}: which split is for training? Name it with `split`: there are "
                f"{', '.join(sorted(splits))}"
            )
    if heldout_split is None:
        heldout_split = next((s for s in HELDOUT_NAMES if s in splits and s != split), None)
    if heldout_split == split:
        raise ValueError(f"{name}: {split!r} cannot be the training and the held-out split at once")
    return splits[split], None if heldout_split is None else splits[heldout_split]


def load(source: Source, heldout_fraction: float, seed: int) -> Task:
    """Reads the rows of a source. Raises ValueError for a split of size 0 and for bad rows."""
    seed = crc32(f"{seed}/{source.name}".encode())  # tasks are cut independently, and repeatably
    notes = []
    if source.heldout is None:
        # Rows enough that `limit` of them are left after the cut.
        wanted = (
            None if source.limit is None else int(np.ceil(source.limit / (1 - heldout_fraction)))
        )
        rows = _examples(source.train, source.form, wanted, seed)
        train, heldout = _cut(rows, heldout_fraction, seed, source)
        notes.append(
            f"no held-out split: {len(heldout)} of {len(rows)} rows cut off (fraction "
            f"{heldout_fraction:g}, seeded)"
        )
        train, heldout = train[: source.limit], heldout[: source.heldout_limit]
    else:
        train = _examples(source.train, source.form, source.limit, seed)
        heldout = _examples(source.heldout, source.form, source.heldout_limit, seed)
        seen = {row.context for row in train}
        shared = sum(row.context in seen for row in heldout)
        if shared:
            notes.append(f"{shared} of {len(heldout)} held-out prompts also stand in training rows")
    for limit, rows, split in (
        (source.limit, train, "training"),
        (source.heldout_limit, heldout, "held-out"),
    ):
        if limit == len(rows):
            notes.append(f"limited to {limit} {split} rows (seeded)")
    return Task(source.name, source.family, tuple(train), tuple(heldout), tuple(notes))


def _examples(table: Table, form: Form, limit: int | None, seed: int) -> list[Example]:
    size = len(table.rows)
    if size == 0:
        raise ValueError(f"{table.name}: a split of size 0: give it rows, or leave it out")
    form = replace(form, labels={**table.labels, **form.labels})
    count = size if limit is None else min(limit, size)
    indices = range(size) if count == size else np.sort(draw(size, count, seed=seed)).tolist()
    return [example(table.rows[i], table.where(i), form) for i in indices]


def _cut(
    rows: list[Example], fraction: float, seed: int, source: Source
) -> tuple[list[Example], list[Example]]:
    """Rows -> (train, heldout), each in the order it had. Rows with one prompt stay together."""
    groups: dict[object, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.context, []).append(index)
    if len(groups) < 2:
        raise ValueError(
            f"{source.train.name}: {len(rows)} row(s) with one prompt leave a held-out split of "
            "size 0: add rows, or a held-out split"
        )
    shuffled = np.random.default_rng(seed).permutation(len(groups)).tolist()
    members = list(groups.values())
    heldout: set[int] = set()
    for group in shuffled[:-1]:  # the last one is left to train on
        if len(heldout) >= max(1, round(fraction * len(rows))):
            break
        heldout.update(members[group])
    return (
        [row for index, row in enumerate(rows) if index not in heldout],
        [rows[index] for index in sorted(heldout)],
    )
