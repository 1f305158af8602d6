"""Log-likelihoods of continuations: what multiple-choice benchmarks ask of a language model.

A request is a `Window`: ids to read, and the ids to score, which end one place further on. Requests
that begin alike are read once (four answers of one token after the same question are one read), and
reads lie packed in rows, several in each, so that little of the work is padding.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float64

from taskpgm.models import DecoderConfig, to_host, variables
from taskpgm.models.scoring import (
    TargetWindow,
    hidden_states,
    one_behind,
    one_model_forward,
    target_log_probs,
    unembeddings,
)
from taskpgm.progress import Work
from taskpgm.tasks.packing import first_fit

SHORTEST_ROW = 128  # ids; shorter reads lie several in a row
CHUNK = 64  # scored positions whose logits exist at once


class Window(NamedTuple):
    """Ids to read and the ids to score, which are the last of them, shifted by one."""

    inputs: list[int]
    targets: list[int]


class Read(NamedTuple):
    """Ids that are read once, and the numbers of the windows whose inputs they begin with."""

    ids: list[int]
    windows: list[int]


def score_windows(
    config: DecoderConfig,
    params: Any,
    windows: Sequence[Window],
    *,
    lora: Any = None,
    batch_size: int,
) -> tuple[Float64[np.ndarray, "w"], Bool[np.ndarray, "w"]]:
    """Log-likelihood of every window's targets, in nats, and whether each of them is the likeliest
    id at its place. A window without targets has 0 nats.

    batch_size: rows of packed reads at a time (see `row_length`).
    """
    nats, greedy = np.zeros(len(windows)), np.ones(len(windows), bool)
    forward, shared = one_model_forward(config), variables(params, lora)
    alone = jnp.zeros(1)  # a group of one model, which has nothing of its own
    head = unembeddings(forward, shared, alone)

    def results() -> Iterator[tuple[TargetWindow, tuple[jax.Array, jax.Array]]]:
        for batch in batches(shared_reads(windows), windows, config, batch_size):
            on_device = jax.device_put(batch)
            hidden = hidden_states(forward, shared, alone, on_device)
            yield batch, target_log_probs(hidden, head, on_device.targets, on_device.count, CHUNK)

    with Work("likelihoods", sum(len(window.targets) for window in windows), unit="token") as work:
        for batch, (values, best) in one_behind(results()):
            owner = batch.example[: batch.count]
            np.add.at(nats, owner, to_host(values)[0, : batch.count].astype(np.float64))
            np.logical_and.at(greedy, owner, to_host(best)[0, : batch.count])
            work.done += int(batch.count)
    return nats, greedy


def shared_reads(windows: Sequence[Window]) -> list[Read]:
    """Every window in one read, and no read the beginning of another. Longest first."""
    reads: list[Read] = []
    # In this order whatever begins with some ids follows directly on those ids themselves.
    for number in sorted(range(len(windows)), key=lambda i: windows[i].inputs, reverse=True):
        inputs = windows[number].inputs
        if not windows[number].targets:
            continue
        if not reads or reads[-1].ids[: len(inputs)] != inputs:
            reads.append(Read(inputs, []))
        reads[-1].windows.append(number)
    return sorted(reads, key=lambda read: -len(read.ids))


def row_length(longest: int) -> int:
    """The length of the rows that hold a read: the next quarter of a power of two, so that
    programs are few and little is padding, and at least SHORTEST_ROW. Longer rows, each with
    several long reads, would cost more: attention grows with the length of the row."""
    step = max(SHORTEST_ROW, 1 << (longest - 1).bit_length()) // 4
    return max(SHORTEST_ROW, -(-longest // step) * step)


def batches(
    reads: Sequence[Read], windows: Sequence[Window], config: DecoderConfig, batch_size: int
) -> Iterator[TargetWindow]:
    """The reads, packed in rows, with the places of their windows' targets: fixed shapes. `example`
    is the number of the window that a target is of."""
    by_length: dict[int, list[Read]] = {}
    for read in reads:
        # A model with learned positions takes no longer rows than it has positions.
        length = min(row_length(len(read.ids)), config.max_position)
        by_length.setdefault(length, []).append(read)
    for length, group in by_length.items():
        rows = first_fit([len(read.ids) for read in group], length)
        count = min(batch_size, 1 << (len(rows) - 1).bit_length())
        for start in range(0, len(rows), count):
            packed = [[group[i] for i in row] for row in rows[start : start + count]]
            yield from _target_windows(packed, windows, (count, length))


def _target_windows(
    rows: Sequence[Sequence[Read]], windows: Sequence[Window], shape: tuple[int, int]
) -> Iterator[TargetWindow]:
    tokens, positions, segment_ids = np.zeros((3, *shape), np.int32)
    where: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    for number, row in enumerate(rows):
        begin = 0
        for segment, read in enumerate(row, 1):
            end = begin + len(read.ids)
            tokens[number, begin:end] = read.ids
            positions[number, begin:end] = np.arange(len(read.ids))
            segment_ids[number, begin:end] = segment
            for window in read.windows:
                last = number * shape[1] + begin + len(windows[window].inputs)
                where += range(last - len(windows[window].targets), last)
                targets += windows[window].targets
                owner += [window] * len(windows[window].targets)
            begin = end
    size = -(-shape[0] * shape[1] // CHUNK) * CHUNK
    for first in range(0, len(where), size):
        run = slice(first, first + size)
        count = len(where[run])
        at, wanted, example = (
            np.pad(np.array(x[run], np.int32), (0, size - count)) for x in (where, targets, owner)
        )
        yield TargetWindow(
            tokens, positions, segment_ids, at, wanted, example, np.asarray(count, np.int32)
        )


def rolling_windows(ids: Sequence[int], prefix: int, length: int) -> Iterator[Window]:
    """Cuts a text into windows of at most `length` inputs, each id a target exactly once."""
    whole = [prefix, *ids]
    for start in range(0, len(ids), length):
        end = min(start + length, len(ids))
        yield Window(whole[max(0, end - length) : end], whole[start + 1 : end + 1])
