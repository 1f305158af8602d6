"""Encoded examples -> rows of one fixed length, several examples to a row, none seeing another."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from taskpgm.tasks.tokenize import Encoded

# First fit considers only this many rows, the newest: the cost stays linear in the number of
# examples, and an example never moves far from its place in the order.
OPEN_ROWS = 1024


class Rows(NamedTuple):
    """r packed rows of t tokens; a row holds whole segments one after the other, then padding.

    Logits at position i predict `targets[i]`, which is `tokens[i + 1]` of the same segment.
    `weights` is 1 where that target is scored and 0 elsewhere: 0 at the end of a segment, and 0 on
    padding. `positions` restart at 0 in each segment; `segment_ids` count 1, 2, ... along the row,
    0 is padding; `example` is the segment's index in `Encoded.ids`, -1 on padding.
    """

    tokens: Int32[np.ndarray, "r t"]
    targets: Int32[np.ndarray, "r t"]
    weights: Float32[np.ndarray, "r t"]
    positions: Int32[np.ndarray, "r t"]
    segment_ids: Int32[np.ndarray, "r t"]
    example: Int32[np.ndarray, "r t"]


def first_fit(sizes: list[int], length: int) -> list[list[int]]:
    """Indices of `sizes`, grouped so that no group sums to more than `length`: each goes, in
    order, to the earliest of the last `OPEN_ROWS` groups that has room. Deterministic."""
    groups: list[list[int]] = []
    room = np.zeros(len(sizes), np.int64)
    for index, size in enumerate(sizes):
        if not 0 < size <= length:
            raise ValueError(f"example {index} has {size} tokens: rows hold 1 to {length}")
        start = max(0, len(groups) - OPEN_ROWS)
        fits = room[start : len(groups)] >= size
        at = start + int(fits.argmax()) if fits.any() else len(groups)
        if at == len(groups):
            groups.append([])
            room[at] = length
        groups[at].append(index)
        room[at] -= size
    return groups


def pack(encoded: Encoded, length: int) -> Rows:
    """Packs every example of `encoded` into rows of `length` tokens by first fit.

    Raises ValueError when an example is longer than a row (encode with max_length <= length).
    """
    groups = first_fit([len(ids) for ids in encoded.ids], length)
    shape = (len(groups), length)
    rows = Rows(
        tokens=np.zeros(shape, np.int32),
        targets=np.zeros(shape, np.int32),
        weights=np.zeros(shape, np.float32),
        positions=np.zeros(shape, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        example=np.full(shape, -1, np.int32),
    )
    for row, group in enumerate(groups):
        begin = 0
        for segment, index in enumerate(group, 1):
            ids, scored = encoded.ids[index], encoded.scored[index]
            end = begin + len(ids)
            rows.tokens[row, begin:end] = ids
            # The last token of a segment has nothing to predict: its target stays 0 with weight 0.
            rows.targets[row, begin : end - 1] = ids[1:]
            rows.weights[row, begin : end - 1] = scored[1:]
            rows.positions[row, begin:end] = np.arange(len(ids))
            rows.segment_ids[row, begin:end] = segment
            rows.example[row, begin:end] = index
            begin = end
    return rows
