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


def blocks_read(n: int, most: int, group: int, contexts: str | None) -> float:
    """Models that read one window of n models, whole groups of at most `group`.

    Groups and blocks are filled up with repeats (pairwise.split): five models in groups of at most
    four read as two groups of three.
    """
    full = lambda count, most: -(-count // -(-count // most))  # noqa: E731
    padded = lambda count: -(-count // group) * full(count, group)  # noqa: E731
    if contexts != "pool":
        rest = n - 1
        if contexts is None or not rest:
            return padded(n)
        return padded(1) + -(-rest // most) * padded(full(rest, most))
    blocks = -(-n // most)
    return blocks * (blocks + 1) / 2 * padded(full(n, most))


Held = Sequence[int]  # the packed held-out rows of a task: how many positions of each are scored


def positions_read(held: Sequence[Held], cut: Layout, length: int) -> tuple[int, int]:
    """(positions that a model reads of all tasks, windows): whole batches, each once for every
    window of its scored positions."""
    windows = 0
    for rows in held:
        batches = [
            sum(rows[at : at + cut.batch_size]) for at in range(0, len(rows), cut.batch_size)
        ]
        windows += sum(-(-scored // cut.scored_per_window) for scored in batches)
    return windows * cut.batch_size * length, windows


class Plan(NamedTuple):
    """What scoring will cost. FLOPs count a multiply-add as two; bytes are bytes."""

    layout: Layout
    text: str
    flops: float  # of matrix products
    other_flops: float  # of the divergences
    positions: int  # read by all models, padding and repeats counted
    loads: float  # of a model onto the device, over all models
    memory: float  # for hidden states and distributions, beside the weights
    disk: float


def plan(
    config: DecoderConfig,
    held: Sequence[Held],
    *,
    num_models: int,
    length: int,
    batch_size: int,
    memory: float,
    heldout_examples: int | None = None,
    contexts: str | None = "pool",
    vocab_top_k: int | None = None,
    base: bool = False,
    parts: int = 1,
    **sizes,
) -> Plan:
    """The arithmetic of the scores of n models on tasks, for `--dry_run`.

    Args:
      held: of every task, first those of the models.
      num_models: n.
      heldout_examples: over all tasks, for the disk; without it, every bin is full.
      contexts: "pool", "pair", or None for log-likelihoods only.
      base: the base is scored as well, likelihoods only.
      parts: devices that share the rows of a forward pass.
      sizes: group and bins of `layout`.

    >>> from taskpgm.models import LoraConfig
    >>> llama = DecoderConfig("llama", 32000, 4096, 11008, 32, 32, 32, 128, 2048, lora=LoraConfig())
    >>> sizes = {"length": 512, "batch_size": 8, "memory": 2.0**30}
    >>> cost = plan(llama, [(125, 125, 125, 125)] * 27, num_models=27, **sizes)
    >>> f"{cost.flops:.1e} and {cost.other_flops:.1e} FLOPs, {cost.positions:,} positions"
    '2.0e+16 and 3.8e+12 FLOPs, 1,548,288 positions'
    """
    n, pairs = num_models, num_models * (num_models - 1) // 2
    d, v = config.hidden_size, config.vocab_size
    scored = sum(map(sum, held))
    cut = layout(
        n,
        config,
        length=length,
        batch_size=batch_size,
        memory=memory,
        contexts=contexts,
        scored=max(map(max, held)),
        **sizes,
    )
    rows = [len(part) for part in held]
    cut = cut._replace(batch_size=rows_at_a_time(rows, cut.batch_size, parts))
    read, windows = positions_read(held, cut, length)
    models = blocks_read(n, cut.models_per_block, cut.group, contexts)
    whole = sum(-(-r // cut.batch_size) * cut.batch_size for r in rows) * length
    positions = round(models * read) + base * whole
    unembed = 2.0 * d * v
    body = forward_flops_per_token(config, length, 0.0)
    # A block's distributions are made again for every other block that it meets.
    heads = n * (-(-n // cut.models_per_block) if contexts == "pool" else 1) + base
    products = positions * body + heads * scored * unembed
    # Every scored position meets all pairs; with "pair" only those of its own task's model.
    meeting = {"pool": pairs, "pair": n - 1, None: 0}[contexts]
    entries = v if vocab_top_k is None else min(v, vocab_top_k + 1)
    reduction = float(PAIR_FLOPS) * meeting * entries * scored
    values = len(held) * cut.bins
    values = values if heldout_examples is None else min(heldout_examples, values)
    disk = FLOAT32 * values * meeting + 2.0 * FLOAT32 * n * (heldout_examples or values)
    block, chunk = cut.models_per_block, cut.positions_per_chunk
    models_held = _held(block, n, contexts)
    used = models_held * FLOAT32 * cut.scored_per_window * d + chunk * _position(
        v, block, models_held
    )
    used += 3 * FLOAT32 * cut.bins * block**2 + models_held * _own_head(config)
    text = (
        f"{n} x {len(held)} scores: {positions:,} tokens read with padding, "
        f"{scored:,} scored in {windows:,} windows"
    )
    if contexts is not None:
        text += (
            f"; {meeting:,} pairs ({contexts}) x {entries:,} entries, {reduction:.1e} FLOPs; "
            f"{block} models x {chunk} positions at a time in {used / 2**20:,.0f} MiB"
        )
    return Plan(cut, text, products, reduction, positions, models * windows, used, disk)
