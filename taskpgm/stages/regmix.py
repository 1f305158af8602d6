"""The runs of the row `regmix`: small models on random mixtures, side by side in one program."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from taskpgm import training
from taskpgm.artefact import read_arrays, read_json, remove, write_json
from taskpgm.mixture import baselines
from taskpgm.multihost import end_if_asked, on_primary
from taskpgm.stages.adapters import adapter_steps, group_size, train_side_by_side
from taskpgm.stages.context import Context, say
from taskpgm.stages.decoders import with_lora
from taskpgm.stages.estimate import Cost, Estimate
from taskpgm.stages.matrix_file import save_arrays
from taskpgm.stages.mixture_inputs import RUNS, Inputs
from taskpgm.stages.proxy_runs import ProxyRuns, SmallModel, folder_of, proxy_key, title_of

UNITS = ("tasks", "families")
COUNT = 64  # the paper: 512 of 1M parameters, for models a thousand times as large

OWN = ("runs", "steps", "units")  # arguments that decide the runs; the others, what is made of them


@dataclass(frozen=True)
class RandomMixtures(ProxyRuns):
    """found.npz: mixtures [r, u] of tasks or of whole families, what each run was trained on;
    losses [r, k], held-out loss of each task and target, nats per token; prior [u], what the
    mixtures were drawn around; of families, members [u, n]: the mixture of tasks that each is."""

    @property
    def count(self) -> int:
        return self.arguments.get("runs", COUNT)

    def make(self) -> dict[str, Any]:
        context, model = self.context, SmallModel(self.context)
        # Many tasks are more than a few dozen runs can tell apart; families are not.
        kind = self.arguments.get("units", "tasks")
        groups = [task.family if kind == "families" else task.name for task in context.tasks]
        members = units(groups, context.sizes)
        prior = natural_prior(members, context.sizes)
        seed = context.seed_of("regmix")
        mixtures = baselines.dirichlet_mixtures(prior, self.count, seed=seed)
        steps = self.steps([len(part.tokens) for part in model.rows])
        size = self.group(model)
        say("proxies", f"{self.title}: {self.count} runs of {steps} steps, {size} side by side")
        parts = []
        for first in range(0, self.count, size):
            path = self.folder / f"losses-{first}.npz"
            if not on_primary(path.is_file)():
                start = time.monotonic()
                numbers = range(first, min(first + size, self.count))
                folder = self.folder / f"group-{first}"
                state = train_side_by_side(
                    context,
                    model.config,
                    model.params,
                    model.optimizer,
                    [model.batches(mixtures[i] @ members, "regmix", str(i)) for i in numbers],
                    [steps] * len(numbers),
                    folder,
                    f"{self.title} {first + 1}-{numbers[-1] + 1}",
                )
                trained = training.unstack(state.trainable, model.axes)
                losses = np.stack([model.losses(each) for each in trained])
                seconds = np.array(time.monotonic() - start)
                save_arrays(path, losses=losses, seconds=seconds)
                remove(folder / "checkpoints")
            end_if_asked()
            parts.append(on_primary(read_arrays)(path))
        losses = np.concatenate([part["losses"] for part in parts])
        families = {"members": members} if kind == "families" else {}
        self.save(mixtures=mixtures, losses=losses, prior=prior, **families)
        return {"seconds": round(float(sum(part["seconds"] for part in parts)), 1)}

    def steps(self, rows: Sequence[int]) -> int:
        """As many as a model of a single task takes, on the average."""
        given = self.arguments.get("steps")
        return given or adapter_steps(round(float(np.mean(rows))), self.context.config.adapters)

    def group(self, model: SmallModel) -> int:
        """Runs side by side: fixed when they begin, as another number gives other last bits."""
        path = self.folder / "plan.json"
        if not on_primary(path.is_file)():
            most = model.section.group or group_size(self.context, model.config, self.count)
            write_json(path, {"group": -(-self.count // -(-self.count // most))})
        return int(read_json(path)["group"])

    def cost(self, estimate: Estimate) -> Cost:
        context, section = self.context, self.context.config.adapters
        length, batch = context.config.tasks.length, context.config.affinity.batch_size
        steps = self.steps(estimate.adapter_rows)
        heldout = sum(part.rows for part in estimate.split(context.proxy, "heldout")) * length
        config = with_lora(estimate.decoder(context.proxy), section)
        problem = None
        try:
            most = section.group or group_size(context, config, self.count, estimate)
        except ValueError as error:
            most, problem = 1, str(error)
        trained = self.count * steps * section.batch_size * length
        what = f"{self.count} runs of {steps} steps"
        read = self.count * -(-heldout // (batch * length)) * batch * length
        cost = self.small_cost(estimate, what, trained=trained, read=read, group=most)
        return replace(cost, problem=problem or cost.problem)

    def summary(self) -> str:
        return f"{self.count} runs"


def units(groups: Sequence[str], sizes: Shaped[np.ndarray, "n"]) -> Float[np.ndarray, "u n"]:
    """The mixture of tasks that each group is: weights by the square root of their examples."""
    size = np.sqrt(np.maximum(sizes, 1.0))
    rows = np.array([[group == each for each in groups] for group in dict.fromkeys(groups)]) * size
    return rows / rows.sum(1, keepdims=True)


def natural_prior(
    members: Float[np.ndarray, "u n"], sizes: Shaped[np.ndarray, "n"]
) -> Float[np.ndarray, "u"]:
    """The square root of the units' shares of examples, as the authors smooth theirs."""
    share = np.sqrt((members > 0) @ np.maximum(sizes, 1.0))
    return share / share.sum()


def chosen(x: Inputs) -> np.ndarray:
    """RegMix on its runs' losses, as much as each task matters."""
    found = x.found(RUNS)
    settings = {key: value for key, value in x.arguments.items() if key not in OWN}
    losses = found["losses"] @ x.importance
    best = baselines.regmix(
        found["mixtures"], losses, prior=found["prior"], seed=x.seed, **settings
    )
    return best @ found["members"] if "members" in found else best


def check(arguments: Mapping[str, Any]) -> None:
    """Refuses a regressor that is not installed, and more of the best than are simulated.

    Raises:
      ImportError, ValueError: names the argument.
    """
    settings = {"regressor": "lightgbm", "simulated": 100_000, "best": 128, **arguments}
    baselines.check_regressor(settings["regressor"])
    if settings["best"] > settings["simulated"]:
        raise ValueError(
            f"compare: regmix: best={settings['best']} is more than simulated="
            f"{settings['simulated']}"
        )


def runs(context: Context, arguments: Mapping[str, Any]) -> RandomMixtures:
    """The runs of a row with these arguments."""
    title = title_of("regmix", {"runs": COUNT, **arguments}, OWN)
    key = proxy_key(context, title)
    return RandomMixtures(folder_of(context, title), key, context, title, arguments)
