"""Computes the scores of all models on all tasks; what is stored is only read.

A new task costs one row (its model on all tasks) and one column (all models on its examples).
Distributions are not kept, so with contexts="pool" the new pairs on an old task need the older
models' distributions again: n forward passes there, but n pairs instead of n (n - 1) / 2. With
contexts="pair" only the task's own model is needed again: O(n) in all.

The unit of work is one task's examples under all models that lack them. A killed run loses at most
the task that it was scoring, and a restart ends with the same bits.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from taskpgm.affinity.jsd import choose_kernel
from taskpgm.affinity.layout import Layout, layout, rows_at_a_time
from taskpgm.affinity.pairwise import (
    MAX_BINS,
    ModelsOf,
    ScoredModels,
    response_tokens,
    score_pairs,
    split,
)
from taskpgm.affinity.scores import Scores
from taskpgm.affinity.store import ScoreStore, TaskScores, fingerprint, select
from taskpgm.models import DecoderConfig
from taskpgm.models.scoring import (
    Forward,
    decoder_forward,
    score_examples,
    score_model,
)
from taskpgm.models.sharding import num_shards
from taskpgm.tasks import Rows


class TaskToScore(NamedTuple):
    """The work on one task's examples: its index, whether it is done, and what does it."""

    task: int
    is_done: Callable[[], bool]
    make: Callable[[], None]


Progress = Callable[[int, int, str], None]  # tasks done, tasks, what was done


def compute_scores(
    config: DecoderConfig,
    params: Any,
    models_of: ModelsOf,
    rows: Sequence[Rows],
    num_examples: Sequence[int],
    *,
    model_keys: Sequence[str],
    folder: Path | str,
    memory: float,
    batch_size: int,
    contexts: str | None = "pool",
    vocab_top_k: int | None = None,
    kernel: str = "xla",
    base_key: str | None = None,
    forward: Forward | None = None,
    cut: Layout | None = None,
    progress: Progress = lambda done, total, text: None,
    share: Callable[[Sequence[TaskToScore]], None] | None = None,
) -> Scores:
    """Scores every model on every task's held-out examples, or reads what is stored.

    Args:
      config, params: the base; `params` may be None where models are whole and no base is scored.
      models_of: indices of at most `Layout.group` models (with repeats) -> adapters if config.lora,
        else parameters, stacked on a leading axis. Called for every window of every task: keep
        what is slow to load.
      rows: packed held-out rows of each task, all of one row length: first those of the models'
        tasks, in the models' order, then those of targets.
      num_examples: of each task; every example must have a scored position.
      model_keys: for each model a hash of all that determines it, the base among it.
      folder: of the store. Files of other tasks and settings in it are deleted at the end.
      memory: bytes for hidden states and distributions (not weights or activations).
      batch_size: rows of a forward pass, at most.
      contexts: "pool" (all pairs on all tasks), "pair" (only pairs with the task's own model), or
        None for log-likelihoods only.
      vocab_top_k: JSD of the k likeliest entries and the rest, a lower bound (pairwise.coarsen).
      kernel: "xla", or "pallas" for the fused kernel of a TPU (jsd.choose_kernel).
      base_key: a hash of all that determines the base; without it, the base is not scored.
      share: makes sure that all these tasks are done, whichever process does one; None: this one
        does all of them, in order.
      forward, cut: in place of the decoder of `config`, and of the layout that fits `memory`.

    Raises:
      ValueError: nothing to score in an example, keys that repeat, too little memory.
      OSError: the store cannot be written.

    >>> import jax
    >>> from taskpgm.models import init_params
    >>> from taskpgm.tasks import Encoded, pack
    >>> config = DecoderConfig("llama", 32, 8, 8, 1, 1, 1, 8, 16)  # a tiny model of 32 tokens
    >>> models = jax.vmap(partial(init_params, config))(jax.random.split(jax.random.key(0), 2))
    >>> ids, scored = np.array([5, 6, 7], np.int32), np.array([False, True, True])
    >>> rows = pack(Encoded([ids], [scored], np.array([0], np.int32), 0, 0), 4)
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     scores = compute_scores(
    ...         config, None, lambda some: jax.tree.map(lambda x: x[np.array(some)], models),
    ...         [rows, rows], [1, 1], model_keys=["first", "second"], folder=folder,
    ...         memory=2.0**30, batch_size=1,
    ...     )
    >>> # Both tasks have the same rows here, so they are scored once.
    >>> scores.log_likelihood.shape, scores.task.tolist(), scores.computed
    ((2, 2), [0, 1], ((0, 0), (1, 0)))
    """
    _check(rows, num_examples, model_keys, base_key, contexts)
    n = len(model_keys)
    forward = forward or decoder_forward(config)
    max_bins = min(MAX_BINS, max(num_examples))
    if cut is None:
        cut = layout(
            n,
            config,
            length=rows[0].tokens.shape[1],
            batch_size=batch_size,
            memory=memory,
            scored=max(int((part.weights > 0).sum(1).max()) for part in rows),
            bins=max_bins,
            contexts=contexts,
        )
        sizes = [len(part.tokens) for part in rows]
        cut = cut._replace(batch_size=rows_at_a_time(sizes, cut.batch_size, num_shards("batch", 0)))
    cut = cut._replace(bins=max_bins)
    models = ScoredModels(forward, params, models_of)
    score = partial(
        _score_models,
        models,
        model_keys,
        contexts=contexts,
        pairs=partial(
            score_pairs, models, layout=cut, top_k=vocab_top_k, pairwise=choose_kernel(kernel)
        ),
        cut=cut,
    )
    store = ScoreStore(Path(folder))
    # With "pair" the stored pairs are those of the task's own model, so it is part of the name: two
    # tasks may have the same rows.
    own = [*model_keys, *[None] * (len(rows) - n)] if contexts == "pair" else [None] * len(rows)
    tasks = [
        fingerprint(part, contexts, MAX_BINS, vocab_top_k, key)
        for part, key in zip(rows, own, strict=True)
    ]
    keys = [*model_keys, *([] if base_key is None else [base_key])]
    computed: list[tuple[int, int]] = []

    def known(k: int) -> tuple[str, ...]:
        stored = store.load(tasks[k])
        return () if stored is None else stored.models

    def score_task(k: int) -> None:
        there = known(k)
        new = [i for i in range(n) if model_keys[i] not in there]
        found = [score(k, new, rows[k], num_examples[k])] if new else []
        if base_key is not None and base_key not in there:
            each = rows[k], num_examples[k]
            found.append(_score_base(config, params, base_key, *each, cut.batch_size))
        if found:
            store.add(tasks[k], found, keys)
        computed.extend((i, k) for i in new)
        progress(k + 1, len(rows), f"{len(new)} of {n} models scored")

    if share is None:
        for k in range(len(rows)):
            score_task(k)
    else:
        is_done = lambda k: set(keys) <= set(known(k))  # noqa: E731
        share(
            [TaskToScore(k, partial(is_done, k), partial(score_task, k)) for k in range(len(rows))]
        )
    store.prune(tasks)
    values = np.concatenate([_stored(store, task, keys).log_likelihood for task in tasks], axis=1)
    return Scores(
        log_likelihood=values[:n],
        base=None if base_key is None else values[n],
        tokens=np.concatenate(
            [response_tokens(*each) for each in zip(rows, num_examples, strict=True)]
        ),
        task=np.repeat(np.arange(len(rows)), num_examples),
        contexts=contexts,
        divergence=lambda k: _stored(store, tasks[k], model_keys).divergence,
        computed=tuple(computed),
    )


def missing_pairs(
    contexts: str | None, k: int, n: int, new: Sequence[int]
) -> tuple[list[int], list[int]]:
    """(left, right): on task k, all pairs among `left` and of `left` with `right` are missing."""
    if contexts == "pool":
        return list(new), [i for i in range(n) if i not in new]
    if contexts == "pair" and k < n:
        return [k], [i for i in (range(n) if k in new else new) if i != k]
    return [], []


def _score_models(
    models: ScoredModels,
    model_keys: Sequence[str],
    k: int,
    new: Sequence[int],
    rows: Rows,
    count: int,
    *,
    contexts: str | None,
    pairs: Callable[..., tuple[Float[np.ndarray, "r m"], Float[np.ndarray, "e r r"]]],
    cut: Layout,
) -> TaskScores:
    """Scores on task k: likelihoods of the models `new`, and divergences of the missing pairs.

    pairs: `score_pairs` without its models.
    """
    n, num_bins = len(model_keys), min(count, MAX_BINS)
    log_likelihood = np.full((n, count), np.nan)
    divergence = np.full((num_bins, n, n), np.nan)
    divergence[:, range(n), range(n)] = 0.0
    left, right = missing_pairs(contexts, k, n, new)
    if left:
        scored = [*left, *right]
        values, divergence[np.ix_(range(num_bins), scored, scored)] = pairs(
            left, right, rows, count
        )
        for i, value in zip(scored, values, strict=True):
            if i in new:  # the older models' are stored, and keep their bits
                log_likelihood[i] = value
    for group in split([i for i in new if i not in (*left, *right)], cut.group):
        log_likelihood[group], _ = score_examples(
            models.forward,
            models.shared,
            models.load(group),
            rows,
            count,
            batch_size=cut.batch_size,
        )
    return TaskScores(tuple(model_keys), log_likelihood, response_tokens(rows, count), divergence)


def _stored(store: ScoreStore, task: str, models: Sequence[str]) -> TaskScores:
    scores = store.load(task)
    if scores is None or not set(models) <= set(scores.models):
        raise ValueError(f"{store.path(task)} was lost meanwhile: start the same command again")
    return select(scores, models)


def _score_base(
    config: DecoderConfig, params: Any, key: str, rows: Rows, count: int, batch_size: int
) -> TaskScores:
    alone = dataclasses.replace(config, lora=None)
    values, tokens = score_model(alone, params, rows, count, batch_size=batch_size)
    return TaskScores((key,), values[None], tokens, np.zeros((min(count, MAX_BINS), 1, 1)))


def _check(
    rows: Sequence[Rows],
    num_examples: Sequence[int],
    model_keys: Sequence[str],
    base_key: str | None,
    contexts: str | None,
) -> None:
    if not len(rows) == len(num_examples) >= len(model_keys) > 0:
        raise ValueError(
            f"rows and num_examples must have one entry per task, and model_keys one per task that "
            f"is mixed; got {len(rows)}, {len(num_examples)} and {len(model_keys)}"
        )
    if len({*model_keys, base_key}) <= len(model_keys):
        raise ValueError("model_keys repeat: every model needs a key of its own, and so the base")
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
