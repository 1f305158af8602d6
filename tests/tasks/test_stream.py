"""Streams: the step is the only state, and an epoch is every row once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskpgm.tasks import Encoded, Rows, draw, pack, stream


def numbered(sizes, length=4):
    """Rows whose every token is the row's own number, over all tasks."""
    parts, begin = [], 1
    for size in sizes:
        ids = [np.full(length, begin + i, np.int32) for i in range(size)]
        scored = [np.ones(length, bool)] * size
        parts.append(pack(Encoded(ids, scored, np.arange(size, dtype=np.int32), 0, 0), length))
        begin += size
    return parts


def seen(batches, steps):
    return np.concatenate([batches[step]["tokens"][:, 0] for step in steps])


def test_batches_are_rows_as_they_were_packed():
    rows = numbered([5, 7])
    batch = stream(rows, batch_size=3, seed=0)[2]
    assert set(batch) == set(Rows._fields)
    for field, values in batch.items():
        whole = np.concatenate([getattr(part, field) for part in rows])
        assert values.shape == (3, 4) and values.dtype == whole.dtype
        assert (values == whole[batch["tokens"][:, 0] - 1]).all()


@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(sum),
    st.integers(1, 6),
    st.integers(0, 2**31 - 1),
)
def test_an_epoch_is_every_row_once(sizes, batch_size, seed):
    total = sum(sizes)
    batches = stream(numbered(sizes), batch_size=batch_size, seed=seed)
    rows = seen(batches, range(-(-2 * total // batch_size)))
    for epoch in range(2):
        part = rows[epoch * total : (epoch + 1) * total]
        assert sorted(part.tolist()) == list(range(1, total + 1))


def test_epochs_differ_and_seeds_differ():
    rows = numbered([30, 34])
    one = stream(rows, batch_size=16, seed=0)
    first, second = seen(one, range(4)), seen(one, range(4, 8))
    assert sorted(first) == sorted(second) and (first != second).any()
    assert (seen(stream(rows, batch_size=16, seed=1), range(4)) != first).any()


@pytest.mark.parametrize("weights", [None, (0.5, 0.25, 0.25)])
def test_resuming_at_any_step_gives_the_same_batches(weights):
    rows = numbered([10, 3, 20])
    straight = [
        batch["tokens"]
        for _, batch in zip(
            range(12), stream(rows, batch_size=8, seed=3, weights=weights), strict=False
        )
    ]
    for start in (11, 5):
        fresh = stream(rows, batch_size=8, seed=3, weights=weights)
        for step in range(start, 12):
            assert (fresh[step]["tokens"] == straight[step]).all()


def test_a_mixture_has_the_shares_asked_for_and_repeats_no_row_within_its_epoch():
    sizes, weights = [8, 40, 20, 5], [0.5, 0.3, 0.2, 0.0]
    rows = seen(stream(numbered(sizes), batch_size=25, seed=0, weights=weights), range(20))
    begins = np.cumsum([0, *sizes])
    tasks = np.searchsorted(begins, rows - 1, side="right") - 1
    np.testing.assert_allclose(np.bincount(tasks, minlength=4) / 500, weights, atol=0.005)
    for task, size in enumerate(sizes):
        mine = rows[tasks == task]
        for begin in range(0, len(mine) - size + 1, size):
            assert len(set(mine[begin : begin + size])) == size
    # Every stretch of the stream has the shares, not only the whole.
    for begin in range(0, 500, 50):
        near = np.bincount(tasks[begin : begin + 50], minlength=4) / 50
        np.testing.assert_allclose(near, weights, atol=0.05)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(0, 200), st.integers(0, 2**31 - 1))
def test_draw_is_without_replacement_within_an_epoch(size, count, seed):
    drawn = draw(size, count, seed=seed)
    assert drawn.shape == (count,) and drawn.dtype == np.int64
    for begin in range(0, count, size):
        epoch = drawn[begin : begin + size]
        assert len(set(epoch.tolist())) == len(epoch) and set(epoch.tolist()) <= set(range(size))
    assert (draw(size, count // 2, seed=seed) == drawn[: count // 2]).all()


def test_drawing_nothing_from_nothing_is_fine_and_something_is_not():
    assert draw(0, 0, seed=0).shape == (0,)
    with pytest.raises(ValueError, match="cannot draw 3 examples out of 0"):
        draw(0, 3, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": []}, "no rows to stream"),
        ({"rows": numbered([0])}, "no rows to stream"),
        ({"rows": numbered([2]) + numbered([2], length=5)}, r"different lengths \[4, 5\]"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"weights": [1.0]}, "1 weights for 2 tasks"),
        ({"weights": [1.0, float("nan")]}, "weights must be finite"),
        ({"weights": [0.0, 0.0]}, "not all zero"),
        ({"rows": numbered([0, 3]), "weights": [1.0, 1.0]}, "task 0 has weight 1.0 but no rows"),
    ],
)
def test_what_cannot_be_streamed_is_refused(change, message):
    arguments = {"rows": numbered([3, 4]), "batch_size": 4, "seed": 0, **change}
    with pytest.raises(ValueError, match=message):
        stream(arguments.pop("rows"), **arguments)
