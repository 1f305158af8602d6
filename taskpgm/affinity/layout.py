"""How the scoring of n x n is cut to fit a stated number of bytes, and what it will cost."""

from collections.abc import Sequence
from typing import NamedTuple

from taskpgm.models import DecoderConfig
from taskpgm.training.flops import forward_flops_per_token

FLOAT32 = 4
# Logits and their log-softmax exist together, with a tenth for what the reduction itself holds.
_COPIES = 2.2
# Operations of one vocabulary entry of one pair (kernels/jsd_term.py), the reciprocal root as one.
PAIR_FLOPS = 25


class Layout(NamedTuple):
    """Sizes of one compiled scoring program; every task and every group of models shares it."""

    batch_size: int  # rows of a forward pass
    group: int  # models side by side in a forward pass
    models_per_block: int  # models whose distributions exist at once; all, if they fit
    scored_per_window: int  # scored positions whose hidden states are kept
    positions_per_chunk: int  # positions whose distributions exist at once
    bins: int  # at most so many values are kept for a pair on a task


def layout(
    n: int,
    config: DecoderConfig,
    *,
    length: int,
    batch_size: int,
    memory: float,
    scored: int | None = None,
    group: int = 8,
    bins: int = 64,
    contexts: str | None = "pool",
) -> Layout:
    """Blocks within `memory` bytes that need the fewest forward passes (`passes`).

    scored: of a row's `length` positions, at most; without it, all of them.

    Raises:
      ValueError: not even one position of two models fits.

    >>> from taskpgm.models import LoraConfig
    >>> llama = DecoderConfig("llama", 32000, 4096, 11008, 32, 32, 32, 128, 2048, lora=LoraConfig())
    >>> layout(316, llama, length=512, batch_size=8, memory=2.0**30)
    Layout(batch_size=1, group=8, models_per_block=316, scored_per_window=105,
           positions_per_chunk=5, bins=64)
    """
    d, v, row = config.hidden_size, config.vocab_size, min(scored or length, length)
    head, found = _own_head(config), []
    for blocks in range(1, n + 1):
        models = -(-n // blocks)
        held = _held(models, n, contexts)
        logits, hidden = _position(v, models, held), FLOAT32 * d * held
        # Three: what is being added, the sum, and its copy on the way to the host.
        room = memory - head * held - 3 * FLOAT32 * bins * models * models
        if room < logits + hidden:
            continue
        positions = int(min(64, batch_size * row, max(1, (room - hidden) // 2 // logits)))
        window = int((room - positions * logits) // hidden)
        positions = min(positions, window)
        window = max(1, min(-(-batch_size * row // positions), window // positions)) * positions
        rows = max(1, min(batch_size, window // row))
        found.append(Layout(rows, min(group, models), models, window, positions, bins))
    if not found:
        need = _position(v, 1, 2) + 2 * (FLOAT32 * d + head) + 3 * FLOAT32 * bins
        raise ValueError(
            f"affinity.memory is {memory / 2**20:.1f} MiB, but one position of two models "
            f"takes {need / 2**20:.1f} MiB"
        )
    # Among equals as many models as leave room for products of some positions.
    return min(
        found,
        key=lambda cut: (passes(cut, n, row, contexts), -min(cut.positions_per_chunk, 32)),
    )


def passes(cut: Layout, n: int, row: int, contexts: str | None) -> float:
    """How often a model reads a context, on average, with `row` scored positions in each row.

    With all n models in one block, once. With b blocks (b + 1) / 2 times, since two are held at a
    time and no distribution is kept; once if contexts are "pair", where only the task's own model
    meets each block. All of it again for each part of a row whose hidden states do not fit.
    """
    blocks = -(-n // cut.models_per_block)
    windows = float(max(1, -(-row // cut.scored_per_window)))
    return ((blocks + 1) / 2 if contexts == "pool" else 1) * windows


def _held(models: int, n: int, contexts: str | None) -> int:
    """Models whose distributions exist at once: of one block of all, or of two blocks."""
    return models if models == n else models + (1 if contexts == "pair" else models)


def _own_head(config: DecoderConfig) -> float:
    """Bytes of an unembedding that a model does not share with the others."""
    return float(FLOAT32 * config.hidden_size * config.vocab_size) if config.lora is None else 0.0


def _position(v: int, models: int, held: int) -> float:
    """Bytes of one position: `held` distributions and the sums of a block's pairs."""
    return FLOAT32 * (_COPIES * v * held + pair_sums(models))


def pair_sums(models: int) -> int:
    """Numbers that kernels/jsd_pallas.py leaves for each position: a sum for every two models, in
    whole tiles of 8, then for each pair, there and in another order. XLA's form needs fewer."""
    return 2 * (models + 7) ** 2


def rows_at_a_time(rows: Sequence[int], most: int, parts: int = 1) -> int:
    """Rows of a forward pass, at most `most`: few enough to leave little to fill up with padding.

    `rows` counts each task's. A pass costs about a row more than its rows; among equals the larger
    one. They can be split into `parts`, over devices, if there are as many.
    """
    sizes = range(most, 0, -1)
    sizes = [size for size in sizes if size % parts == 0] or sizes
    return min(sizes, key=lambda size: sum(-(-r // size) * (size + parts) for r in rows))


class Plan(NamedTuple):
    """What scoring will cost. FLOPs count a multiply-add as two; bytes are bytes."""

    layout: Layout
    text: str
    flops: float
    loads: float  # of a model onto the device, over all models
    memory: float  # for hidden states and distributions, beside the weights
    disk: float


def plan(
    config: DecoderConfig,
    *,
    num_tasks: int,
    heldout_tokens: int,
    length: int,
    batch_size: int,
    memory: float,
    scored_tokens: int | None = None,
    heldout_examples: int | None = None,
    contexts: str | None = "pool",
    num_targets: int = 0,
    base: bool = False,
    **sizes,
) -> Plan:
    """The arithmetic of the scores of n models on n tasks and their targets, for `--dry_run`.

    Args:
      num_tasks, num_targets: n, and tasks that are judged but not mixed.
      heldout_tokens, scored_tokens: over all tasks; without the second, all tokens count as scored.
      heldout_examples: over all tasks, for the disk; without it, every bin is full.
      contexts: "pool", "pair", or None for log-likelihoods only.
      base: the base is scored as well, likelihoods only.
      sizes: group and bins of `layout`.

    >>> from taskpgm.models import LoraConfig
    >>> llama = DecoderConfig("llama", 32000, 4096, 11008, 32, 32, 32, 128, 2048, lora=LoraConfig())
    >>> sizes = {"length": 512, "batch_size": 8, "memory": 2.0**30}
    >>> cost = plan(llama, num_tasks=27, heldout_tokens=54_000, **sizes)
    >>> f"{cost.flops:.1e} FLOPs, {cost.disk:.1e} bytes"
    '1.9e+16 FLOPs, 2.8e+06 bytes'
    """
    n, pairs = num_tasks, num_tasks * (num_tasks - 1) // 2
    d, v = config.hidden_size, config.vocab_size
    scored = heldout_tokens if scored_tokens is None else scored_tokens
    scored_of_row = max(1, round(length * scored / heldout_tokens))
    cut = layout(
        n,
        config,
        length=length,
        batch_size=batch_size,
        memory=memory,
        contexts=contexts,
        scored=scored_of_row,
        **sizes,
    )
    reads = passes(cut, n, scored_of_row, contexts) if contexts else 1
    unembed = 2.0 * d * v
    body = forward_flops_per_token(config, length) - unembed
    models = (n * reads + base) * (heldout_tokens * body + scored * unembed)
    # Every scored position meets all pairs; with "pair" only those of its own task's model.
    meeting = {"pool": pairs, "pair": n - 1, None: 0}[contexts]
    reduction = float(PAIR_FLOPS) * meeting * v * scored
    values = (n + num_targets) * cut.bins
    values = values if heldout_examples is None else min(heldout_examples, values)
    disk = FLOAT32 * values * meeting + 2.0 * FLOAT32 * n * (heldout_examples or values)
    block, chunk = cut.models_per_block, cut.positions_per_chunk
    held = _held(block, n, contexts)
    used = held * FLOAT32 * cut.scored_per_window * d + chunk * _position(v, block, held)
    used += 3 * FLOAT32 * cut.bins * block**2 + held * _own_head(config)
    text = (
        f"{n} x {n + num_targets} scores of {heldout_tokens:,} held-out tokens "
        f"({scored:,} scored): {n} models read them {reads:g} x, {models:.2e} FLOPs"
    )
    if contexts is not None:
        text += (
            f"; {meeting:,} pairs ({contexts}) x {v:,} entries x {scored:,} positions, "
            f"{reduction:.2e} FLOPs; {block} models x {chunk} positions at a time "
            f"in {used / 2**20:,.0f} MiB"
        )
    windows = max(
        n + num_targets, heldout_tokens / (length * cut.batch_size)
    )  # a task has one at least
    return Plan(cut, text, models + reduction, n * reads * windows, used, disk)
