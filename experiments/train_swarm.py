"""Trains a swarm: many mixtures of the embedded suite, as the quickstart trains its own.

    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart
    python experiments/train_swarm.py --workdir=runs/quickstart --out=runs/swarm

Takes base, single-task models and affinities from a finished quickstart. Writes OUT/scores.npz, and
a line of OUT/runs.jsonl for every run, with the held-out loss of every task. Killed at any moment,
the same command goes on with the next run; --limit=N stops after N. The laws' minimisers come
first, then the other kinds of mixtures evenly spread, each with all its seeds, so that a part of
the runs is a fair sample. `predict.py OUT` says what predicts them.
"""

import argparse
import json
import runpy
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from taskpgm import affinity, evaluation, models, tasks, training
from taskpgm.mixture import allocate
from taskpgm.stages import compare
from taskpgm.stages.affinity import compute_scores
from taskpgm.stages.affinity_files import read_affinities, read_resamples, read_transfer
from taskpgm.stages.context import Context
from taskpgm.stages.mixture import predicted_loss
from taskpgm.stages.mixture_inputs import Inputs
from taskpgm.stages.run_models import drawn
from taskpgm.stages.steps import run_steps

RECIPE = Path(__file__).parents[1] / "configs" / "quickstart.py"
NAMED = ("uniform", "uniform-families", "size-proportional", "size-proportional:temperature=2")
RATIOS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.1)  # along every affinity's path
CONCENTRATIONS = (0.5, 2.0, 8.0)  # Dirichlet parameters: this times n times the mean
DRAWS = 17  # of each concentration, around each of two means


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a finished quickstart")
    parser.add_argument("--out", type=Path, required=True, help="folder of the swarm")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--limit", type=int, default=10**6, help="runs to make in this call")
    given = parser.parse_args()
    context = Context(runpy.run_path(str(RECIPE))["get_config"](), given.workdir, sys.argv)
    given.out.mkdir(parents=True, exist_ok=True)
    save_scores(context, given.out / "scores.npz")
    file = given.out / "runs.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    done = {(run["name"], run["seed"]) for run in map(json.loads, lines)}
    mixtures = planned(inputs_of(context))
    todo = [(name, seed) for name in mixtures for seed in range(given.seeds)]
    todo = [run for run in todo if run not in done][: given.limit]
    trainer = Trainer(context)
    for number, (name, seed) in enumerate(todo, 1):
        start, p = time.monotonic(), mixtures[name]
        counts = counts_of(context, p)
        rows, loss = trainer.losses(counts, seed)
        run = {"name": name, "seed": seed, "p": rounded(p, 6), "counts": counts, "rows": rows}
        with file.open("a") as out:
            out.write(json.dumps(run | {"loss": rounded(loss, 5)}) + "\n")
        seconds = time.monotonic() - start
        print(f"{number}/{len(todo)} {name}, seed {seed}: {np.mean(loss):.4f}, {seconds:.1f} s")


def rounded(values: np.ndarray, digits: int) -> list[float]:
    return [round(float(x), digits) for x in values]


def inputs_of(context: Context) -> Inputs:
    """What the rows of `compare` are made from, as the stage `mixture` has it."""
    config, learnt = context.config, read_transfer(context.folder)
    assert learnt is not None
    return Inputs(
        names=context.names,
        families=[task.family for task in context.tasks],
        affinities={kind: S for kind, (S, _) in read_affinities(context.folder).items()},
        resamples=read_resamples(context.folder),
        sizes=context.sizes,
        cap=compare.caps(context.sizes, config.mixture.budget, config.mixture.max_epochs),
        config=config.mixture.to_dict(),
        seed=config.seed,
        share=learnt["share"],
        predicted=predicted_loss(config.mixture, learnt, context.sizes),
    )


def planned(inputs: Inputs) -> dict[str, np.ndarray]:
    """All mixtures by name, [n] each; those of laws begin with "law", random ones with "dir"."""
    named = list(NAMED)
    for kind in ("pmi", "jsd", "transfer"):
        named += [f"taskpgm-{kind}:r={r:g}" for r in RATIOS]
    found = {name.replace("taskpgm-", "").replace(":r=", "-"): name for name in named}
    chosen = {short: weights_of(name, inputs) for short, name in found.items()}
    law, cap = inputs.law, inputs.cap
    means = {"tasks": chosen["uniform"], "families": chosen["uniform-families"]}
    for what, w in means.items():
        chosen[f"law-{what}-naive"] = np.asarray(law.minimise(w, cap).weights)
        chosen[f"law-{what}-pulled"] = np.asarray(law.minimise(w, cap, prior=w).weights)
    rng, random = np.random.default_rng(0), {}
    for i in range(DRAWS):
        for what, mean in means.items():
            for a in CONCENTRATIONS:
                random[f"dir{a:g}-{what}-{i}"] = rng.dirichlet(a * inputs.n * mean)
    early = {x: p for x, p in chosen.items() if x in NAMED[:2] or x.startswith("law")}
    spread = [[x for x in chosen if x not in early], list(random)]
    places = [(i / len(names), x) for names in spread for i, x in enumerate(names)]
    return early | {x: (chosen | random)[x] for _, x in sorted(places)}


def weights_of(name: str, inputs: Inputs) -> np.ndarray:
    made = compare.make(name, inputs)[2]
    return np.asarray(getattr(made, "weights", made), np.float64)


def counts_of(context: Context, p: np.ndarray) -> list[int]:
    """Examples of each task, [n], as many as the budget."""
    section = context.config.mixture
    counts = allocate(p, section.budget, sizes=context.sizes, max_epochs=section.max_epochs)
    return [int(count) for count in counts]


class Trainer:
    """Fine-tunes the base on mixtures one after the other, in memory; what they share is made
    once."""

    def __init__(self, context: Context):
        self.context, section = context, context.config.train
        self.config, params = context.load_model(context.base)
        self.params = jax.tree.map(np.asarray, params)
        self.optimizer = training.make_optimizer(section.optimizer.to_dict())
        self.steps = run_steps(context)
        self.heldout = [context.rows(context.base, t.heldout, t.name) for t in context.tasks]

    def losses(self, counts: list[int], seed: int) -> tuple[int, np.ndarray]:
        """Packed rows of a mixture, and the held-out loss of every task after training, [n]."""
        context, section = self.context, self.context.config.train
        rows = [
            context.rows(context.base, drawn(context, task, count, seed), task.name)
            for task, count in zip(context.tasks, counts, strict=True)
            if count
        ]
        at = context.seed_of("runs", str(seed))
        axes = models.logical_axes(self.config)
        state = training.create_state(self.optimizer, self.params, axes=axes)
        step = training.make_train_step(self.config, self.optimizer, state)
        batches: Any = tasks.stream(rows, batch_size=section.batch_size, seed=at)
        key, total = jax.random.key(at), jnp.asarray(self.steps, jnp.int32)
        for k in range(self.steps):
            state, _ = step(state, None, batches[k], key, total)
        found = evaluation.task_losses(
            self.config,
            state.trainable,
            context.tasks,
            self.heldout,
            batch_size=context.config.evaluation.batch_size,
        )
        loss = np.array([found[name]["loss"] for name in context.names])
        return sum(len(part.tokens) for part in rows), loss


def save_scores(context: Context, path: Path) -> None:
    """What single-task models said of the held-out examples, as `swarm.load` reads it."""
    if path.is_file():
        return
    scores = compute_scores(context, context.folder / "affinity" / "scores")
    learnt = read_transfer(context.folder)
    assert learnt is not None and scores.base is not None
    np.savez_compressed(
        path,
        log_likelihood=scores.log_likelihood.astype(np.float32),
        tokens=scores.tokens,
        task=scores.task,
        names=np.array(context.names),
        families=np.array([task.family for task in context.tasks]),
        sizes=context.sizes,
        base_loss=affinity.mean_losses(scores.base[None], scores.task, scores.tokens)[0],
        seen=learnt["seen"],
    )


if __name__ == "__main__":
    main()
