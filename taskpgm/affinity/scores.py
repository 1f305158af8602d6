"""All n x n scores: what is stored is read, what is missing is computed and stored.

Adding a task computes the cells of one row (its model on all tasks) and one column (all models on
its examples), and no other. Distributions are not kept, so with contexts="pool" the new pairs on an
old task need the older models' distributions again: n forward passes there, but n pairs instead of
n (n - 1) / 2. With contexts="pair" only the task's own model is needed again: O(n) in all.

The unit of work is one task's examples under all models that lack them. Sums are kept on the way:
killed, a run loses the windows since then, at most KEEP_EVERY seconds of work and one window, and
of log-likelihoods alone the `group` cells at hand.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from taskpgm.affinity import store
from taskpgm.affinity.budget import Layout, layout, rows_at_a_time
from taskpgm.affinity.cells import Grid
from taskpgm.affinity.stream import ModelsOf, accumulate, bins, conclude, split
from taskpgm.models import DecoderConfig
from taskpgm.models.scoring import Forward, decoder_forward, score_examples
from taskpgm.models.sharding import num_shards
from taskpgm.multihost import on_primary
from taskpgm.tasks import Rows

KEEP_EVERY = 20.0  # seconds between two writes of the sums of a task
Progress = Callable[[int, int, str], None]  # tasks done, tasks, what was done


@dataclass(frozen=True)
class Scores:
    """What the models said about the held-out examples."""

    log_likelihood: Float[np.ndarray, "n m"]  # sums over response tokens, nats
    tokens: Int[np.ndarray, "m"]  # response tokens of each example
    task: Int[np.ndarray, "m"]  # the task it is held out from
    computed: tuple[tuple[int, int], ...]  # cells (model, task) that were not stored before
    grid: Grid  # the stored divergences

    def divergence(self, k: int) -> tuple[Float[np.ndarray, "e n n"], Int[np.ndarray, "e"]]:
        """JSD of pairs by bin of task k's examples (NaN: not asked for), and examples by bin."""
        values = self.grid.divergence(k)
        if np.isnan(values[0][self.grid.wanted(k)]).any():
            raise ValueError(f"{self.grid.folder} lost divergences on task {k}: run it again")
        return values, bins(self.grid.num_examples[k], self.grid.bins).count

    def mean_divergence(self) -> Float[np.ndarray, "k n n"]:
        """C[k, i, j], the mean JSD of models i and j over the examples of task k, nats."""
        tasks = [self.divergence(k) for k in range(self.grid.n)]
        return np.stack([np.tensordot(count / count.sum(), x, 1) for x, count in tasks])


# What the log-likelihood of an example is taken over.
_NORMALIZE = {
    "token": lambda scores: scores.log_likelihood / scores.tokens,
    "sequence": lambda scores: scores.log_likelihood,
}


def likelihoods(scores: Scores, normalize: str = "token") -> Float[np.ndarray, "n m"]:
    """Log-likelihoods as `pmi` takes them: by response token, or of the whole response."""
    if normalize not in _NORMALIZE:
        raise ValueError(f"normalize must be one of {sorted(_NORMALIZE)}; got {normalize!r}")
    return _NORMALIZE[normalize](scores)


def compute_scores(
    config: DecoderConfig | None,
    params: Any,
    models_of: ModelsOf,
    rows: Sequence[Rows],
    num_examples: Sequence[int],
    *,
    model_keys: Sequence[str],
    folder: Path,
    memory: float,
    batch_size: int,
    group: int = 8,
    contexts: str | None = "pool",
    most_bins: int = 64,
    vocab_top_k: int | None = None,
    forward: Forward | None = None,
    cut: Layout | None = None,
    progress: Progress = lambda done, total, text: None,
) -> Scores:
    """Scores every model on every task's held-out examples, or reads what is stored.

    Args:
      config, params: the base; `params` may be None where models are whole.
      models_of: indices of at most `group` models (with repeats) -> adapters if config.lora,
        else parameters, stacked on a leading axis. Called for every window of every task: keep
        what is slow to load.
      rows: packed held-out rows of each task, all of one row length. Model i is the one of task i.
      num_examples: of each task; every example must have a scored position.
      model_keys: for each model a hash of all that determines it, the base among it.
      folder: of the store. Cells of other models, tasks and settings in it are deleted at the end.
      memory: bytes for hidden states and distributions (not weights or activations).
      batch_size: rows of a forward pass, at most.
      contexts: "pool" (all pairs on all tasks), "pair" (only pairs with the task's own model), or
        None for log-likelihoods alone.
      most_bins: values kept for a pair on a task, at most; more examples than that share bins,
        which bounds the store at n * most_bins * n (n - 1) / 2 * 4 bytes.
      vocab_top_k: JSD of the k likeliest entries and the rest, a lower bound (stream.coarsen).
      forward, cut: in place of the decoder of `config`, and of the layout that fits `memory`.

    Raises:
      ValueError: nothing to score in an example, keys that repeat, too little memory.
      OSError: the store cannot be written.
    """
    _check(rows, num_examples, model_keys, contexts)
    forward = forward or decoder_forward(config)
    most = min(most_bins, max(num_examples))
    if cut is None:
        cut = layout(
            len(rows),
            config,
            length=rows[0].tokens.shape[1],
            batch_size=batch_size,
            memory=memory,
            scored=max(int((part.weights > 0).sum(1).max()) for part in rows),
            group=group,
            bins=most,
            contexts=contexts,
        )
        sizes, parts = [len(part.tokens) for part in rows], num_shards("batch", 0)
        cut = cut._replace(batch_size=rows_at_a_time(sizes, cut.batch_size, parts))
    tasks = tuple(store.fingerprint(x) for x in rows)
    counts = tuple(map(int, num_examples))
    grid = Grid(Path(folder), tuple(model_keys), tasks, counts, most_bins, contexts, vocab_top_k)
    computed = []
    for k in range(grid.n):
        some = _score_task(k, grid, forward, params, models_of, rows[k], cut._replace(bins=most))
        computed += [(i, k) for i in some]
        progress(k + 1, grid.n, f"{len(some)} of {grid.n} models scored")
    on_primary(store.prune)(grid.folder, grid.names())
    cells = [grid.likelihoods(k) for k in range(grid.n)]
    return Scores(
        np.concatenate([[cell["sums"] for cell in column] for column in cells], axis=1),
        np.concatenate([column[0]["tokens"] for column in cells]),
        np.repeat(np.arange(grid.n), num_examples),
        tuple(computed),
        grid,
    )


def _score_task(
    k: int, grid: Grid, forward: Forward, params: Any, models_of: ModelsOf, rows: Rows, cut: Layout
) -> list[int]:
    """Computes and stores what is missing on the examples of task k; returns those models."""
    count = grid.num_examples[k]
    unread = [i for i, cell in enumerate(grid.likelihoods(k)) if cell is None]
    owners, partners = grid.missing(k, unread)
    fresh = sorted({*unread, *owners})
    if owners:
        new, old, begun = grid.kept(k, owners, partners, cut) or (owners, partners, None)
        if len(new) >= len(old):
            # One block of all costs little more, and has the shape that other tasks compile.
            new, old = sorted(new + old), []
        sums, kept = begun, time.monotonic()
        due = on_primary(lambda: time.monotonic() - kept > KEEP_EVERY)  # clocks are not alike
        for sums in accumulate(
            forward,
            params,
            models_of,
            new,
            old,
            rows,
            count,
            cut,
            top_k=grid.vocab_top_k,
            begin=begun,
        ):
            if due():
                grid.keep(k, new, old, cut, sums)
                kept = time.monotonic()
        grid.keep(k, new, old, cut, sums)
        got, names = conclude(sums, len(new), rows), [*new, *old]
        values = np.full((len(got.count), grid.n, grid.n), np.nan)
        values[np.ix_(range(len(got.count)), names, names)] = got.divergence
        for place, i in enumerate(names):
            if i in unread:
                grid.write_likelihood(i, k, got.log_likelihood[place], got.tokens)
        unread = [i for i in unread if i not in names]
        grid.write_divergence(k, owners, values)
    for part in split(unread, cut.group):
        sums, tokens = score_examples(
            forward, params, models_of(part), rows, count, batch_size=cut.batch_size
        )
        for i, row in zip(part, sums, strict=True):
            grid.write_likelihood(i, k, row, tokens)
    grid.end(k)
    return fresh


def _check(rows, num_examples, model_keys, contexts) -> None:
    if not len(rows) == len(num_examples) == len(model_keys) > 0:
        raise ValueError(
            f"rows, num_examples and model_keys must have one entry per task; "
            f"got {len(rows)}, {len(num_examples)} and {len(model_keys)}"
        )
    if len(set(model_keys)) < len(model_keys):
        raise ValueError("model_keys repeat: every model needs a key of its own")
    if contexts not in ("pool", "pair", None):
        raise ValueError(f"contexts must be 'pool', 'pair' or None; got {contexts!r}")
    if len({x.tokens.shape[1] for x in rows}) > 1:
        raise ValueError("rows of different lengths: pack all tasks to one length")
    for k, (part, m) in enumerate(zip(rows, num_examples, strict=True)):
        seen = np.bincount(part.example[part.weights > 0], minlength=m)
        if len(seen) > m or m < 1 or seen.min() == 0:
            empty = int(np.argmin(seen)) if len(seen) <= m else m
            raise ValueError(
                f"task {k} has {m} held-out examples, but example {empty} "
                + ("is not one of them" if len(seen) > m else "has no token to score")
            )
