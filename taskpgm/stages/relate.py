"""Stages `affinity` and `mixture`: how tasks relate, and what follows for their proportions."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from taskpgm import affinity, mixture, training
from taskpgm.multihost import on_primary
from taskpgm.stages import adapters, mixtures
from taskpgm.stages import workdir as wd
from taskpgm.stages.context import Context, on_mesh, say
from taskpgm.stages.matrix import UNREADABLE, load_matrix, save_matrix

KINDS = ("pmi", "jsd")


# --- How tasks relate ----------------------------------------------------------------------------
def affinity_stage(context: Context) -> None:
    """Writes affinity/pmi.npz and jsd.npz, from the models' scores or from a matrix's file."""
    stage = given_affinity if context.config.affinity.matrix else scored_affinity
    stage(context)


@on_mesh
def scored_affinity(context: Context) -> None:
    """Scores every model on every held-out set."""
    folder, key = context.folder / "affinity", affinity_key(context)
    if wd.is_done(folder, key):
        say("affinity", "done already")
        return
    # Not emptied: what is in it is stored by content, and one more task costs one row and column.
    wd.reopen(folder)
    scores = compute_scores(context, folder / "scores")
    say("affinity", f"{len(scores.computed)} of {len(context.tasks) ** 2} cells computed")
    save_affinities(context, scores)
    wd.mark_done(folder, key)


@on_primary
def save_affinities(context: Context, scores: affinity.Scores) -> None:
    """Both matrices that follow from the scores."""
    section = context.config.affinity
    draws = {"resamples": section.bootstrap, "seed": context.config.seed}
    pmi = affinity.pmi(affinity.likelihoods(scores, section.normalize), scores.task)
    jsd = affinity.jsd_affinity(scores.mean_divergence(), section.contexts)
    save_affinity(
        context,
        "pmi",
        pmi,
        lambda: affinity.resample_pmi(scores, normalize=section.normalize, **draws),
    )
    save_affinity(context, "jsd", jsd, lambda: affinity.resample_jsd(scores, **draws))


def affinity_key(context: Context) -> str:
    """Hash of all that decides the affinities: every task's model and examples."""
    section = context.config.affinity.to_dict()
    for free in ("memory", "batch_size"):
        del section[free]
    return wd.digest(
        [adapters.adapter_key(context, t) for t in context.tasks], context.tasks_key, section
    )


def compute_scores(context: Context, folder: Path) -> affinity.Scores:
    """Every single-task model on every held-out set; what is stored in `folder` is only read."""
    section = context.config.affinity
    config, params = context.load_model(context.proxy)
    config = adapters.with_lora(config, context.config.adapters)
    models_of = adapters.load_adapters(context, config, context.names)
    rows, counts = [], []
    for task in context.tasks:
        rows.append(context.rows(context.proxy, task.heldout, task.name))
        counts.append(int(rows[-1].example.max()) + 1)
    with training.Reporter("affinity", len(rows), unit="task") as report:
        return affinity.compute_scores(
            config,
            params,
            models_of,
            rows,
            counts,
            model_keys=[adapters.adapter_key(context, task) for task in context.tasks],
            folder=folder,
            memory=section.memory * 2**30,
            batch_size=section.batch_size,
            contexts=section.contexts,
            vocab_top_k=section.vocab_top_k or None,
            progress=lambda done, total, text: report.update(done, text),
        )


def save_affinity(
    context: Context, kind: str, S: np.ndarray, resample: Callable[[], np.ndarray]
) -> None:
    """One matrix with its intervals, and the resamples that the mixtures' intervals need."""
    folder = context.folder / "affinity"
    arrays = {"affinity": S, "tasks": np.array(context.names)}
    if context.config.affinity.bootstrap:
        samples = resample()
        arrays["low"], arrays["high"] = affinity.intervals(samples)
        save_matrix(folder / f"{kind}-resamples.npz", samples=samples.astype(np.float32))
    save_matrix(folder / f"{kind}.npz", **arrays)


@on_primary
def given_affinity(context: Context) -> None:
    """Takes an affinity from a file: any symmetric matrix will do."""
    folder, section = context.folder / "affinity", context.config.affinity
    if section.kind not in KINDS:
        raise ValueError(f"affinity.kind={section.kind!r} is none of {', '.join(KINDS)}")
    matrix, names = load_matrix(Path(section.matrix))
    key = wd.digest(section.kind, matrix.tolist(), names)
    if wd.is_done(folder, key):
        say("affinity", "done already")
        return
    mixture.energy_from_affinity(matrix, 1.0)  # refuses what is no affinity before it is kept
    wd.begin(folder, key)
    save_matrix(folder / f"{section.kind}.npz", affinity=matrix, tasks=np.array(names))
    wd.mark_done(folder, key)
    say("affinity", f"{len(names)} tasks from {section.matrix}")


@on_primary
def mixture_stage(context: Context) -> None:
    """Solves every mixture of `compare` and writes mixture/weights.json."""
    folder = context.folder / "mixture"
    section = context.config.mixture.to_dict()
    given = affinities(context.folder)
    key = wd.digest(
        context.config.affinity.bootstrap,
        {kind: wd.digest(S.tolist()) for kind, (S, _) in given.items()},
        section,
        list(context.config.compare),
        context.config.seed,
        sizes(context),
    )
    if wd.is_done(folder, key):
        say("mixture", "done already")
        return
    wd.begin(folder, key)
    weights = solve_mixtures(context, given)
    wd.write_json(folder / "weights.json", weights)
    wd.mark_done(folder, key)
    for name, entry in weights["mixtures"].items():
        gap = f", gap {entry['gap']:.1e}" if entry["gap"] is not None else ""
        say("mixture", f"{name}: {entry['effective']:.1f} effective tasks{gap}")


def sizes(context: Context) -> list[int] | None:
    """Training examples per task; None when they are not known (a matrix from a file)."""
    section = context.config.affinity
    if not section.matrix:
        return context.sizes.tolist()
    if not section.sizes:
        return None
    try:
        given = json.loads(Path(section.sizes).read_text(encoding="utf-8"))
        given = {name: int(size) for name, size in given.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{section.sizes}: not a JSON object of tasks and their numbers of examples ({error})"
        ) from error
    names = next(iter(affinities(context.folder).values()))[1]
    absent = [name for name in names if name not in given]
    if absent:
        raise ValueError(f"{section.sizes}: no size of task {absent[0]!r}")
    return [given[name] for name in names]


def affinities(folder: Path) -> dict[str, tuple[np.ndarray, list[str]]]:
    """{kind: (S [n, n], task names)} of the matrices in a workdir."""
    paths = {kind: folder / "affinity" / f"{kind}.npz" for kind in KINDS}
    found = {}
    for kind, path in paths.items():
        if path.is_file():
            try:
                found[kind] = load_matrix(path)
            except ValueError as error:
                raise ValueError(f"{error}: {wd.way_out(path)}") from error
    if not found:
        raise ValueError(
            f"{folder / 'affinity'} holds no affinity: {wd.way_out(folder / 'affinity')}"
        )
    return found


def resamples(folder: Path, kinds: Iterable[str]) -> dict[str, np.ndarray]:
    """Affinities of resampled held-out sets, [b, n, n] by kind, where there are any."""
    found = {}
    for kind in kinds:
        path = folder / "affinity" / f"{kind}-resamples.npz"
        if path.is_file():
            try:
                with np.load(path) as archive:
                    found[kind] = archive["samples"].astype(np.float64)
            except UNREADABLE as error:
                raise ValueError(f"{path} is damaged ({error}): {wd.way_out(path)}") from error
    return found


def solve_mixtures(context: Context, given: dict[str, tuple[np.ndarray, list[str]]]) -> dict:
    """The content of weights.json: every mixture, the first of TaskPGM's repeated at the top."""
    section = context.config.mixture
    names = next(iter(given.values()))[1]
    listed = sizes(context)
    size = None if listed is None else np.array(listed)
    inputs = mixtures.Inputs(
        affinities={kind: S for kind, (S, _) in given.items()},
        resamples=resamples(context.folder, given),
        sizes=size,
        cap=None if size is None else mixtures.caps(size, section.budget, section.max_epochs),
        config=section.to_dict(),
        seed=context.config.seed,
    )
    made = {name: entry(name, inputs, section) for name in context.config.compare}
    main = next((name for name, e in made.items() if e["gap"] is not None), next(iter(made)))
    families = {task.name: task.family for task in context.tasks}
    families = {} if context.config.affinity.matrix else families
    return {
        "tasks": names,
        "families": [families.get(name, "") for name in names],
        "sizes": listed,
        "main": main,
        **{k: v for k, v in made[main].items() if k != "explain"},
        "mixtures": made,
    }


def entry(name: str, inputs: mixtures.Inputs, section: Any) -> dict:
    """One mixture of weights.json: its weights and counts, its certificate and its explanation."""
    made = mixtures.make(name, inputs)
    kind = mixtures.MIXTURES[name].affinity
    solved = isinstance(made, mixture.Solution)
    weights = np.asarray(made.weights if solved else made, np.float64)
    counts = mixture.allocate(
        weights, section.budget, sizes=inputs.sizes, max_epochs=section.max_epochs
    )
    told = explained(kind, inputs, weights, solved and made.method) if kind else None
    return {
        "affinity": kind,
        "method": made.method if solved else name,
        "ratio": float(section.ratio) if kind else None,
        "weights": weights.tolist(),
        "counts": [int(c) for c in counts],
        "energy": float(made.energy) if solved else None,
        "gap": float(made.gap) if solved else None,
        "effective": float(mixture.effective_tasks(weights)),
        "explain": told,
    }


def explained(kind: str, inputs: mixtures.Inputs, weights: np.ndarray, method: str) -> dict:
    """What method 11 asks of a mixture, as lists for JSON, tasks in the order of the matrix.

    Intervals (method 10) are those of the exact mixture, so no other is given any.
    """
    section, drawn = inputs.config, None
    if method == "exact" and kind in inputs.resamples:
        drawn = mixture.bootstrap_weights(
            inputs.resamples[kind],
            section["ratio"],
            inputs.cap,
            psd=section["psd"],
            floor=section["floor"],
        ).weights
    told = mixture.explain(
        inputs.affinities[kind], inputs.energy(kind), weights, cap=inputs.cap, resampled=drawn
    )
    intervals = (
        {}
        if drawn is None
        else {
            "low": told.interval[0].tolist(),
            "high": told.interval[1].tolist(),
            "kept_share": told.kept.tolist(),
        }
    )
    return intervals | {
        "representativeness": told.representativeness.tolist(),
        "redundancy": told.redundancy.tolist(),
        "reduced_cost": told.reduced_cost.tolist(),
        "energy_unary": told.unary_term,
        "energy_pairwise": told.pairwise_term,
    }
