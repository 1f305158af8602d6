"""Packed rows -> batches of one task or of a mixture. The step is the only state.

Rows are packed first, task by task, and only row numbers are mixed. So the batch of any step can be
computed by itself, resuming costs nothing, and all hosts of a run have the same batches.
"""

from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Int

from taskpgm.tasks.packing import Rows


def draw(size: int, count: int, *, seed: int) -> Int[np.ndarray, "count"]:
    """`count` indices below `size`: every one once before any is repeated (method, section 9).

    Epoch e is a permutation seeded by (seed, e), so a short draw is the beginning of a long one.
    """
    if count < 0 or (size < 1 and count):
        raise ValueError(f"cannot draw {count} examples out of {size}")
    epochs = -(-count // size) if count else 0
    parts = [np.random.default_rng([seed, epoch]).permutation(size) for epoch in range(epochs)]
    return np.concatenate([*parts, np.zeros(0, np.int64)])[:count].astype(np.int64)


def stream(
    rows: Sequence[Rows],
    *,
    batch_size: int,
    seed: int,
    weights: Sequence[float] | None = None,
) -> grain.MapDataset:
    """An endless random-access data set: `ds[step]` is a dict of the fields of `Rows`, each [b, t].

    Args:
      rows: one Rows per task, all of the same length t.
      batch_size: rows in a batch, over all hosts.
      seed: for the order, which differs from epoch to epoch.
      weights: each task's share of the rows, to within 1% of the smallest share; a task's rows are
        drawn without replacement within its own epoch. None: all rows are one set, and each is
        drawn exactly once per epoch.

    Raises ValueError for no rows, uneven lengths, bad weights, or a batch of no rows.
    """
    sizes = [len(part.tokens) for part in rows]
    _check(rows, sizes, batch_size, weights)
    begins = np.cumsum([0, *sizes])
    if weights is None:
        order = grain.MapDataset.range(int(begins[-1])).shuffle(seed=_seed(seed, 0))
    else:
        kept = [i for i, weight in enumerate(weights) if weight > 0]
        order = grain.MapDataset.mix(
            [
                grain.MapDataset.range(int(begins[i]), int(begins[i + 1])).shuffle(
                    seed=_seed(seed, i)
                )
                for i in kept
            ],
            [float(weights[i]) for i in kept],
        )

    def gather(numbers: Int[np.ndarray, "b"]) -> dict[str, np.ndarray]:
        parts = np.searchsorted(begins, numbers, side="right") - 1
        places = list(zip(parts, numbers - begins[parts], strict=True))
        return {
            field: np.stack([getattr(rows[part], field)[row] for part, row in places])
            for field in Rows._fields
        }

    return order.repeat().batch(batch_size).map(gather)


def _seed(seed: int, part: int) -> int:
    """One 32-bit seed per part. Seeds in a row would repeat each other's epochs, because grain adds
    the epoch to the seed."""
    return int(np.random.SeedSequence([seed, part]).generate_state(1)[0])


def _check(rows, sizes, batch_size, weights) -> None:
    if not sizes or sum(sizes) == 0:
        raise ValueError("no rows to stream: every task is empty")
    lengths = sorted({part.tokens.shape[1] for part in rows})
    if len(lengths) > 1:
        raise ValueError(f"rows of different lengths {lengths} cannot share a batch: pack alike")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} has to be at least 1")
    if weights is None:
        return
    if len(weights) != len(sizes):
        raise ValueError(f"{len(weights)} weights for {len(sizes)} tasks")
    if not all(np.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
        raise ValueError("weights must be finite, not negative, and not all zero")
    for part, (weight, size) in enumerate(zip(weights, sizes, strict=True)):
        if weight > 0 and size == 0:
            raise ValueError(f"task {part} has weight {weight} but no rows")
