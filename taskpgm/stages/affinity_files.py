"""The files of affinity/, which stage `affinity` writes and later stages read."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Float

from taskpgm import affinity
from taskpgm.artefact import read_arrays, recovery_hint, write_bytes
from taskpgm.stages.context import Context, say
from taskpgm.stages.matrix_file import BASE, TaskNames, load_matrix, save_arrays

MADE = "affinity"  # the folder
KINDS = ("pmi", "jsd")


def save_pmi(context: Context, names: TaskNames, scores: affinity.Scores) -> None:
    """pmi.npz, from log-likelihoods, and likelihoods.npz, themselves."""
    save_arrays(
        context.folder / MADE / "likelihoods.npz",
        tasks=np.array(names.judged),
        log_likelihood=scores.log_likelihood,
        tokens=scores.tokens,
        task=scores.task,
    )
    section, n = context.config.affinity, len(names.mixed)
    draws = {"resamples": section.bootstrap, "seed": context.config.seed}
    mixed = scores.task < n
    values = affinity.likelihoods(scores, section.normalize)[:, mixed]
    pmi = affinity.pmi(values, scores.task[mixed])
    resample = partial(affinity.resample_pmi, scores, normalize=section.normalize, **draws)
    relevance, others = None, None
    if names.targets:
        relevance = affinity.pmi_relevance(scores, section.normalize)
        others = partial(
            affinity.resample_pmi_relevance, scores, normalize=section.normalize, **draws
        )
    # One example of each task, as where mean losses are given, has nothing to resample.
    once = len(scores.task) == scores.num_tasks
    save_affinity(context, "pmi", names, pmi, None if once else resample, relevance, others)


def save_jsd(context: Context, names: TaskNames, scores: affinity.Scores) -> None:
    """jsd.npz, from divergences."""
    section = context.config.affinity
    draws = {"resamples": section.bootstrap, "seed": context.config.seed}
    jsd = affinity.jsd_affinity(scores.mean_divergence(), section.contexts)
    relevance, others = None, None
    if names.targets:
        relevance = affinity.jsd_relevance(scores)
        others = partial(affinity.resample_jsd_relevance, scores, **draws)
    resample = partial(affinity.resample_jsd, scores, **draws)
    save_affinity(context, "jsd", names, jsd, resample, relevance, others)


def save_affinity(
    context: Context,
    kind: str,
    names: TaskNames,
    S: Float[np.ndarray, "n n"],
    resample: Callable[[], np.ndarray] | None,
    relevance: Float[np.ndarray, "n t"] | None = None,
    resample_relevance: Callable[[], np.ndarray] | None = None,
) -> None:
    """Saves a matrix with its intervals, and the resamples for the intervals of mixtures."""
    folder = context.folder / MADE
    arrays = {"affinity": S, "tasks": np.array(names.mixed)}
    if relevance is not None:
        arrays |= {"relevance": relevance, "targets": np.array(names.targets)}
    if context.config.affinity.bootstrap and resample:
        samples = {"samples": resample()}
        arrays["low"], arrays["high"] = affinity.intervals(samples["samples"])
        if resample_relevance:
            samples["relevance"] = resample_relevance()
        stored = {name: value.astype(np.float32) for name, value in samples.items()}
        save_arrays(folder / f"{kind}-resamples.npz", **stored)
    save_arrays(folder / f"{kind}.npz", **arrays)


def save_transfer(
    context: Context,
    names: TaskNames,
    scores: affinity.Scores,
    seen: Sequence[float] | None = None,
) -> None:
    """transfer.npz and losses.csv: how much each task's model helps each task, and its loss there.

    Losses are means over the tokens of a task, as in the evaluation. `seen` counts the examples
    that each single-task model was trained on.
    """
    folder, seed, base = context.folder / MADE, context.config.seed, scores.base
    values, task, tokens = scores.log_likelihood, scores.task, scores.tokens
    found = affinity.measure_transfer(values, task, base, tokens, seed=seed)
    rows = values if base is None else np.concatenate([base[None], values])
    loss = affinity.mean_losses(rows, task, tokens)
    idle = found.nothing_learnt(names.judged)
    if idle:
        more = f" and {len(idle) - 5} more" if len(idle) > 5 else ""
        say("affinity", f"nothing learnt by the models of {', '.join(idle[:5])}{more}: no transfer")
    arrays = {
        "tasks": np.array(names.mixed),
        "targets": np.array(names.targets, dtype=np.str_),
        "share": found.share,
        "low": found.low,
        "high": found.high,
        "gain": found.gain,
        "error": found.error,
        "reference": found.reference,
        "learnt": found.learnt,
        "loss": loss[-len(names.mixed) :],
    }
    if base is not None:
        arrays["base_loss"] = loss[0]
    if seen is not None:
        arrays["seen"] = np.array(seen)
    save_arrays(folder / "transfer.npz", **arrays)
    lines = [",".join(["model", *map(quoted, names.judged)])]
    models: list[str] = [*([] if base is None else [BASE]), *names.mixed]
    for name, row in zip(models, loss, strict=True):
        lines.append(",".join([quoted(name), *(f"{value:.6g}" for value in row)]))
    write_bytes(folder / "losses.csv", ("\n".join(lines) + "\n").encode())


def quoted(name: str) -> str:
    """A name as a field of a CSV file."""
    return '"' + name.replace('"', '""') + '"' if set(name) & set(',"\n') else name


# --- Reading ---------------------------------------------------------------------
def read_affinities(folder: Path) -> dict[str, tuple[Float[np.ndarray, "n n"], list[str]]]:
    """{kind: (S [n, n], task names)} of the matrices in a workdir.

    Raises:
      ValueError: there is none, or one is damaged; says what to remove.
    """
    found = {}
    for kind in KINDS:
        path = folder / MADE / f"{kind}.npz"
        if path.is_file():
            try:
                found[kind] = load_matrix(path)
            except ValueError as error:
                raise ValueError(f"{error}: {recovery_hint(path)}") from error
    if not found:
        raise ValueError(f"{folder / MADE} holds no affinity: {recovery_hint(folder / MADE)}")
    return found


def read_transfer(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays of transfer.npz; None where only a matrix was given."""
    path = folder / MADE / "transfer.npz"
    return read_arrays(path) if path.is_file() else None


def read_likelihoods(folder: Path) -> dict[str, np.ndarray]:
    """log_likelihood [n, m] of the single-task models on held-out examples, sums over the tokens of
    a response, nats; tokens [m] and task [m] of each.

    Raises:
      ValueError: the file is missing or damaged; names the way out.
    """
    path = folder / MADE / "likelihoods.npz"
    if not path.is_file():
        raise ValueError(f"{path} is missing: {recovery_hint(path)}")
    return read_arrays(path)


def read_targets(folder: Path) -> tuple[list[str], dict[str, Float[np.ndarray, "n t"]]]:
    """Names of the targets, and by kind of affinity how relevant each mixed task is to each."""
    targets, found = [], {}
    for kind in KINDS:
        path = folder / MADE / f"{kind}.npz"
        arrays = read_arrays(path) if path.is_file() else {}
        if "relevance" in arrays:
            targets, found[kind] = list(map(str, arrays["targets"])), arrays["relevance"]
    return targets, found


def read_resamples(folder: Path, array: str = "samples") -> dict[str, Float[np.ndarray, "b n k"]]:
    """By kind, affinities [b, n, n] of resampled held-out sets, or `relevance` to targets
    [b, n, t]; where there are any."""
    found = {}
    for kind in KINDS:
        path = folder / MADE / f"{kind}-resamples.npz"
        arrays = read_arrays(path) if path.is_file() else {}
        if array in arrays:
            found[kind] = arrays[array].astype(np.float64)
    return found
