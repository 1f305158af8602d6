"""Runs that a row of `compare` needs in order to choose its mixture: small models in proxies/NAME.

They start from the proxy and are trained as the section `adapters` says, on batches drawn by the
weights of a mixture. The batch of a step is a function of a seed and the step, so they resume.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from taskpgm import evaluation, models, training
from taskpgm.artefact import digest, done_facts, read_arrays
from taskpgm.stages.context import Context
from taskpgm.stages.decoders import trained_axes, with_lora
from taskpgm.stages.estimate import FLOAT32, Cost, Estimate, fits
from taskpgm.stages.matrix_file import save_arrays
from taskpgm.stages.stage_artefact import StageArtefact
from taskpgm.stages.steps import run_steps
from taskpgm.tasks import Rows

MADE = "proxies"
LENGTH = ("mixture.budget", "train.steps", "train.epochs", "train.batch_size")
FILE = "found.npz"
# Of the section `adapters`: what does not change what a small model becomes.
FREE = ("source", "peft", "group", "memory", "checkpoint_every")


@dataclass(frozen=True)
class ProxyRuns(StageArtefact):
    """The runs of one row, and found.npz: what they have found out.

    Attributes:
      arguments: of the row.
      settings: the keys of `mixture` and `train` that decide them, with their values.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> dict[str, np.ndarray]:
        """The arrays that the row is made from.

        Raises:
          ValueError: the file is damaged; names it and what to remove.
        """
        return read_arrays(self.folder / FILE)

    def save(self, **arrays: np.ndarray) -> None:
        save_arrays(self.folder / FILE, **arrays)

    def seconds(self) -> float:
        return float(done_facts(self.folder)["seconds"])

    def small_cost(
        self, estimate: Estimate, what: str, *, trained: int, read: int, group: int = 1
    ) -> Cost:
        """The cost of runs on `trained` tokens that also read `read` tokens."""
        context, section = self.context, self.context.config.adapters
        length = context.config.tasks.length
        config = with_lora(estimate.decoder(context.proxy), section)
        memory = training.estimate_memory(
            config, rows=section.batch_size, length=length, group=group, mesh=estimate.mesh
        ).total
        flops = trained * training.flops_per_token(config, length)
        flops += read * training.forward_flops_per_token(config, length)
        each = training.num_adapter_params(config) if config.lora else config.num_params
        return Cost(
            f"{self.title}: {what}, {trained:,} tokens trained and {read:,} read with padding",
            flops,
            FLOAT32 * each * 3 * 2 * group,
            memory,
            fits(estimate, memory, "adapters.batch_size or adapters.group"),
            trained=trained,
            scored=read,
        )


def proxy_key(context: Context, *settings: Any) -> str:
    """Hash of all that decides small runs: how they train, on what, and their own settings."""
    section = {k: v for k, v in context.config.adapters.to_dict().items() if k not in FREE}
    length, seed = context.config.tasks.length, context.config.seed
    return digest(context.proxy.key, section, length, seed, context.judged_key, settings)


def budget_steps(context: Context, tokens_per_example: float | None = None) -> int:
    """Steps of a small run that reads as many rows as a run on a mixture."""
    rows = run_steps(context, None, tokens_per_example) * context.config.train.batch_size
    return max(1, -(-rows // context.config.adapters.batch_size))


def budget_settings(context: Context, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What `budget_steps` follow from; nothing where a row gives its steps."""
    if "steps" in arguments:
        return {}
    values = {"mixture": context.config.mixture, "train": context.config.train}
    return {key: values[key.split(".")[0]][key.split(".")[1]] for key in LENGTH}


class SmallModel:
    """What the runs of a row share: the proxy, the tasks' rows, how it is trained and measured."""

    def __init__(self, context: Context):
        self.context = context
        self.section = context.config.adapters
        config, self.params = context.load_model(context.proxy)
        self.config = with_lora(config, self.section)
        self.axes = trained_axes(self.config)
        self.optimizer = training.make_optimizer(self.section.optimizer.to_dict())

    @cached_property
    def rows(self) -> list[Rows]:
        """Training rows of each task."""
        context = self.context
        return [context.rows(context.proxy, task.train, task.name) for task in context.tasks]

    @cached_property
    def heldout(self) -> list[Rows]:
        """Held-out rows of each task, then of each target."""
        context = self.context
        return [context.rows(context.proxy, task.heldout, task.name) for task in context.judged]

    def batches(
        self, weights: Float[np.ndarray, "n"], *names: str
    ) -> Callable[[int], dict[str, np.ndarray]]:
        """Step -> batch of rows drawn by the weights of a mixture; `names` seed the draw."""
        seed = self.context.seed_of("proxies", *names)
        return sampled(self.rows, weights, self.section.batch_size, seed)

    def beginning(self, name: str) -> training.TrainState:
        """A small model before its first step; `name` seeds its adapter."""
        # Copied: training gives up what it starts from, and another run starts from it too.
        if self.config.lora:
            first = models.init_lora(self.config, jax.random.key(self.context.seed_of(name)))
        else:
            first = jax.tree.map(jnp.copy, self.params)
        return training.create_state(self.optimizer, first, axes=self.axes)

    def fit(self, step: Callable, state: Any, batches: Callable, **settings: Any) -> Any:
        """`training.fit` of a small model, or what is left of it; settings as there."""
        return training.fit(
            step,
            state,
            batches,
            frozen=self.params if self.config.lora else None,
            checkpoint_every=self.section.checkpoint_every,
            log_every=self.context.config.log_every,
            **settings,
        )

    def losses(self, trained: Any) -> Float[np.ndarray, "k"]:
        """Loss of a trained model on the held-out rows of each task and target, nats per token."""
        lora = trained if self.config.lora else None
        params = self.params if self.config.lora else trained
        found = evaluation.task_losses(
            self.config,
            params,
            self.context.judged,
            self.heldout,
            lora=lora,
            batch_size=self.context.config.affinity.batch_size,
        )
        return np.array(
            [found[name]["loss"] for name in [task.name for task in self.context.judged]]
        )


def sampled(
    rows: Sequence[Rows], weights: Float[np.ndarray, "n"], batch_size: int, seed: int
) -> Callable[[int], dict[str, np.ndarray]]:
    """Step -> a batch whose rows are drawn independently: a task by its weight, one of its rows.

    `example` holds the number of each position's task, -1 on padding.
    """
    weights = np.asarray(weights, np.float64) / np.sum(weights)

    def batch(step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([seed, step])
        drawn = rng.choice(len(rows), batch_size, p=weights)
        picked = [(task, int(rng.integers(len(rows[task].tokens)))) for task in drawn]
        found = {
            name: np.stack([getattr(rows[task], name)[row] for task, row in picked])
            for name in Rows._fields
        }
        number = np.asarray(drawn, np.int32)[:, None]
        found["example"] = np.where(found["example"] >= 0, number, np.int32(-1))
        return found

    return batch


def title_of(head: str, arguments: Mapping[str, Any], names: Sequence[str]) -> str:
    """The name of runs: the row's, with those of its arguments that decide its runs."""
    told = [f"{name}={arguments[name]}" for name in names if name in arguments]
    return head + (":" if told else "") + ",".join(told)


def folder_of(context: Context, title: str) -> Path:
    return context.folder / MADE / title
