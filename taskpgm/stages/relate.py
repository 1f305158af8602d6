"""Stages `affinity` and `mixture`: how tasks relate, and what follows for their proportions."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from taskpgm import affinity, mixture
from taskpgm.stages import learn, mixtures
from taskpgm.stages import workdir as wd
from taskpgm.stages.context import Context, say


# --- How tasks relate ----------------------------------------------------------------------------
def affinity_stage(context: Context) -> None:
    """Scores every model on every held-out set; writes affinity/pmi.npz and jsd.npz."""
    folder, section = context.folder / "affinity", context.config.affinity
    key = affinity_key(context)
    if wd.is_done(folder, key):
        say("affinity", "done already")
        return
    config, params = context.load_model(context.proxy)
    config = learn.with_lora(config, context.config.adapters)
    loras = learn.load_adapters(context, config, context.names)
    rows = [context.rows(context.proxy, t.heldout, t.name) for t in context.tasks]
    from taskpgm.affinity import predict
    lls, tasks_of, C = [], [], []
    for k, r in enumerate(rows):
        m = int(r.example.max()) + 1
        ll, tok = predict.score_examples(config, params, loras, r, m, batch_size=section.batch_size)
        lls.append(ll / tok)
        tasks_of += [k] * m
        jsd = predict.score_divergence(config, params, loras, r, m, batch_size=section.batch_size)
        C.append(affinity.divergence.symmetric(jsd.mean(0), len(rows)))
    S = {"pmi": affinity.pmi(np.concatenate(lls, 1), np.array(tasks_of)),
         "jsd": affinity.jsd_affinity(np.array(C), section.contexts)}
    wd.begin(folder, key)
    for kind, matrix in S.items():
        save_matrix(folder / f"{kind}.npz", affinity=matrix, tasks=np.array(context.names))
    wd.mark_done(folder, key)


def affinity_key(context: Context) -> str:
    return wd.digest([learn.adapter_key(context, t) for t in context.tasks], context.tasks_key)


def save_matrix(path: Path, **arrays: np.ndarray) -> None:
    """An .npz file, all or nothing."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    wd.write_bytes(path, buffer.getvalue())


def mixture_stage(context: Context) -> None:
    """Solves every mixture of `compare` and writes mixture/weights.json."""
    folder = context.folder / "mixture"
    section = context.config.mixture.to_dict()
    given = affinities(context.folder)
    key = wd.digest(
        {kind: wd.digest(S.tolist()) for kind, (S, _) in given.items()}, section,
        list(context.config.compare), context.config.seed, sizes(context),
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
    given = wd.read_json(Path(section.sizes))
    names = next(iter(affinities(context.folder).values()))[1]
    absent = [name for name in names if name not in given]
    if absent:
        raise ValueError(f"{section.sizes}: no size of task {absent[0]!r}")
    return [int(given[name]) for name in names]


def affinities(folder: Path) -> dict[str, tuple[np.ndarray, list[str]]]:
    """{kind: (S [n, n], task names)} of the matrices in a workdir."""
    found = {}
    for kind in ("pmi", "jsd"):
        path = folder / "affinity" / f"{kind}.npz"
        if path.is_file():
            with np.load(path) as archive:
                found[kind] = archive["affinity"], [str(name) for name in archive["tasks"]]
    if not found:
        raise ValueError(f"{folder / 'affinity'} holds no affinity: run the stage `affinity` first")
    return found


def solve_mixtures(context: Context, given: dict[str, tuple[np.ndarray, list[str]]]) -> dict:
    """The content of weights.json: every mixture, the first of TaskPGM's repeated at the top."""
    section = context.config.mixture
    names = next(iter(given.values()))[1]
    size = None if sizes(context) is None else np.array(sizes(context))
    inputs = mixtures.Inputs(
        affinities={kind: S for kind, (S, _) in given.items()},
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
        "sizes": sizes(context),
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
    told = explained(kind, inputs, weights) if kind else None
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


def explained(kind: str, inputs: mixtures.Inputs, weights: np.ndarray) -> dict:
    """What method 11 asks of a mixture, as lists for JSON, tasks in the order of the matrix."""
    told = mixture.explain(inputs.affinities[kind], inputs.energy(kind), weights, cap=inputs.cap)
    return {
        "representativeness": told.representativeness.tolist(),
        "redundancy": told.redundancy.tolist(),
        "reduced_cost": told.reduced_cost.tolist(),
        "energy_unary": told.unary_term,
        "energy_pairwise": told.pairwise_term,
    }
