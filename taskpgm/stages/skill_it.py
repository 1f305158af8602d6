"""The run of the row `skill-it`: a small model whose mixture changes from round to round."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from taskpgm import training
from taskpgm.artefact import read_json, remove, write_json
from taskpgm.mixture import baselines
from taskpgm.multihost import on_primary
from taskpgm.stages.affinity import affinities
from taskpgm.stages.affinity_files import read_transfer
from taskpgm.stages.context import Context, say
from taskpgm.stages.estimate import Cost, Estimate
from taskpgm.stages.preferences import read_importance
from taskpgm.stages.proxy_runs import (
    ProxyRuns,
    SmallModel,
    budget_settings,
    budget_steps,
    folder_of,
    proxy_key,
    title_of,
)

ROUNDS = 6  # the paper's, where it fine-tunes
OWN = ("rounds", "rate", "window", "steps")


@dataclass(frozen=True)
class OnlineRun(ProxyRuns):
    """found.npz: weights [t, n] of each round, losses [t, k] after it, held-out, nats per token.

    Who helps whom is the transfer of the affinities (G, clipped at zero), which the paper measures
    by runs on pairs of skills; losses count by `mixture.importance`.
    """

    @property
    def rounds(self) -> int:
        return self.arguments.get("rounds", ROUNDS)

    def make(self) -> dict[str, Any]:
        context, model = self.context, SmallModel(self.context)
        helps = on_primary(helpfulness)(context)
        steps = max(self.rounds, self.arguments.get("steps") or budget_steps(context))
        ends = [round(steps * (k + 1) / self.rounds) for k in range(self.rounds)]
        say("proxies", f"{self.title}: {steps} steps in {self.rounds} rounds")
        settings = {k: self.arguments[k] for k in ("rate", "window") if k in self.arguments}
        path = self.folder / "rounds.json"
        told = read_json(path, [])
        state: Any = model.beginning("skill-it")
        train = training.make_train_step(model.config, model.optimizer, state)
        for k in range(len(told), self.rounds):
            start = time.monotonic()
            before = np.array([each["losses"] for each in told]).reshape(-1, helps.shape[1])
            weights = baselines.skill_it(helps, before, **settings)
            # Called again with the same folder it goes on from where the round before has ended.
            state = model.fit(
                train,
                state,
                model.batches(weights, "skill-it", str(k)),
                steps=ends[k],
                totals=steps,
                directory=self.folder / "run",
                name=f"{self.title} {k + 1}/{self.rounds}",
                seed=context.seed_of("skill-it"),
            )
            losses = model.losses(state.trainable)
            seconds = time.monotonic() - start
            told.append(
                {"weights": weights.tolist(), "losses": losses.tolist(), "seconds": seconds}
            )
            write_json(path, told)
        found = {name: np.array([each[name] for each in told]) for name in ("weights", "losses")}
        self.save(**found)
        remove(self.folder / "run" / "checkpoints")
        return {"steps": steps, "seconds": round(sum(each["seconds"] for each in told), 1)}

    def cost(self, estimate: Estimate) -> Cost:
        context, length = self.context, self.context.config.tasks.length
        batch = context.config.affinity.batch_size
        steps = self.arguments.get("steps") or budget_steps(context, estimate.tokens_per_example)
        steps = max(steps, self.rounds)
        heldout = sum(part.rows for part in estimate.split(context.proxy, "heldout")) * length
        read = self.rounds * -(-heldout // (batch * length)) * batch * length
        trained = steps * context.config.adapters.batch_size * length
        what = f"{steps} steps in {self.rounds} rounds"
        return self.small_cost(estimate, what, trained=trained, read=read)

    def summary(self) -> str:
        return f"{self.rounds} rounds"


def helpfulness(context: Context) -> np.ndarray:
    """A of Skill-It [n, k]: what training on i (row) brings of the gain on j, a task or a target,
    as j matters."""
    found = read_transfer(context.folder)
    if found is None:
        raise ValueError("skill-it needs the losses of single-task models: drop it from compare")
    names, families = zip(*[(task.name, task.family) for task in context.judged], strict=True)
    value = context.config.mixture.importance
    importance = read_importance(value, names, families, len(context.tasks))
    return np.maximum(found["share"], 0.0) * importance * len(importance)


def runs(context: Context, arguments: Mapping[str, Any]) -> OnlineRun:
    """The run of a row with these arguments."""
    title = title_of("skill-it", arguments, OWN)
    importance, steps = context.config.mixture.importance, budget_settings(context, arguments)
    key = proxy_key(context, title, affinities(context).key, importance, list(steps.values()))
    settings = steps | {"mixture.importance": importance}
    return OnlineRun(folder_of(context, title), key, context, title, arguments, settings)
