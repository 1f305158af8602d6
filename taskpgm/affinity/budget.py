"""How the scoring of n x n is cut to fit a stated number of bytes, and what it will cost."""

from collections.abc import Sequence
from typing import NamedTuple

from taskpgm.models import DecoderConfig
from taskpgm.training.flops import flops_per_token

FLOAT32 = 4
# Logits and their log-softmax exist together, with a tenth for what the reduction itself holds.
_COPIES = 2.2
# Operations of one vocabulary entry of one pair (kernels.term), the reciprocal root as one.
PAIR_FLOPS = 25


class Layout(NamedTuple):
    """Sizes of one compiled scoring program; every task and every group of models shares it."""

    batch_size: int  # rows of a forward pass
    group: int  # models side by side in a forward pass
    models: int  # models whose distributions exist at once; all, if they fit
    window: int  # scored positions whose hidden states are kept
    positions: int  # positions whose distributions exist at once
    bins: int  # at most so many values are kept for a pair on a task


def layout(
    n: int,
    config: DecoderConfig,
    *,
    length: int,
    batch_size: int,
    memory: float,
    group: int = 8,
    bins: int = 64,
    mode: str = "lora",
) -> Layout:
    """The largest blocks within `memory` bytes: first of positions, and only then of models.

    With all n models in one block every model reads every context once. With b blocks it reads
    (b + 1) / 2 times on average, since two blocks are held at a time and no distribution is kept.

    Raises:
      ValueError: not even one position of two models fits.
    """
    d, v = config.hidden_size, config.vocab_size
    head = FLOAT32 * d * v if mode == "full" else 0
    for blocks in range(1, n + 1):
        models = -(-n // blocks)
        held = models if blocks == 1 else 2 * models
        logits, hidden = _position(v, models, held), FLOAT32 * d * held
        # Three: what is being added, the sum, and its copy on the way to the host.
        fixed = head * held + 3 * FLOAT32 * bins * models * models
        if fixed + logits + hidden <= memory:
            break
    else:
        need = _position(v, 1, 2) + 2 * (FLOAT32 * d + head) + 3 * FLOAT32 * bins
        raise ValueError(
            f"affinity.memory is {memory / 2**20:.1f} MiB, but one position of two models "
            f"takes {need / 2**20:.1f} MiB"
        )
    room, most = memory - fixed, batch_size * length
    positions = int(min(64, most, max(1, (room - hidden) // 2 // logits)))
    window = int((room - positions * logits) // hidden)
    window = max(1, min(-(-most // positions), window // positions)) * positions
    return Layout(batch_size, min(group, models), models, window, positions, bins)


def _position(v: int, models: int, held: int) -> float:
    """Bytes of one position: `held` distributions and the sums of a block's pairs."""
    return FLOAT32 * (_COPIES * v * held + fused_sums(models))


def fused_sums(models: int) -> int:
    """Numbers that a kernel of fused.py leaves for each position: a sum for every two models, in
    whole tiles of 8, then for each pair, there and in another order."""
    return 2 * (models + 7) ** 2


def rows_at_a_time(rows: Sequence[int], most: int) -> int:
    """Rows of a forward pass, from most/2 to `most`, that leave the fewest to fill up with padding.

    `rows` counts each task's; among equals the larger one.
    """
    sizes = range(most, most // 2, -1)
    return min(sizes, key=lambda size: sum(-(-r // size) * size for r in rows))


class Plan(NamedTuple):
    """What scoring will cost. FLOPs count a multiply-add as two; bytes are bytes."""

    layout: Layout
    text: str
    flops: float
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
    **sizes,
) -> Plan:
    """The arithmetic of n x n scores, for `--dry_run`.

    Args:
      heldout_tokens, scored_tokens: over all tasks; without the second, all tokens count as scored.
      heldout_examples: over all tasks, for the disk; without it, every bin is full.
      contexts: "pool", "pair", or None for log-likelihoods alone.
      sizes: group, bins, mode of `layout`.
    """
    n, pairs = num_tasks, num_tasks * (num_tasks - 1) // 2
    d, v = config.hidden_size, config.vocab_size
    cut = layout(n, config, length=length, batch_size=batch_size, memory=memory, **sizes)
    scored = heldout_tokens if scored_tokens is None else scored_tokens
    blocks = -(-n // cut.models)
    reads = 1 if contexts is None else (blocks + 1) / 2
    unembed = 2.0 * d * v
    body = flops_per_token(config, length, "forward") - unembed
    models = n * reads * (heldout_tokens * body + scored * unembed)
    # Every scored position meets all pairs; with "pair" only those of its own task's model.
    meeting = {"pool": pairs, "pair": n - 1, None: 0}[contexts]
    reduction = float(PAIR_FLOPS) * meeting * v * scored
    values = n * cut.bins if heldout_examples is None else min(heldout_examples, n * cut.bins)
    disk = FLOAT32 * values * meeting + 2.0 * FLOAT32 * n * (heldout_examples or values)
    held = cut.models if blocks == 1 else 2 * cut.models
    used = held * FLOAT32 * cut.window * d + cut.positions * _position(v, cut.models, held)
    used += 3 * FLOAT32 * cut.bins * cut.models**2
    text = (
        f"{n} x {n} scores of {heldout_tokens:,} held-out tokens ({scored:,} scored): "
        f"{n} models read them {reads:g} x, {models:.2e} FLOPs"
    )
    if contexts is not None:
        text += (
            f"; {meeting:,} pairs ({contexts}) x {v:,} entries x {scored:,} positions, "
            f"{reduction:.2e} FLOPs; {cut.models} models x {cut.positions} positions at a time "
            f"in {used / 2**20:,.0f} MiB"
        )
    return Plan(cut, text, models + reduction, used, disk)
