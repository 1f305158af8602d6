"""Models of single tasks as files: their keys, loading them, and PEFT folders in and out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from taskpgm import models, progress, tasks, training
from taskpgm.artefact import Artefact, digest, done_facts, fingerprint, recovery_hint
from taskpgm.multihost import on_primary
from taskpgm.stages.context import Context, say
from taskpgm.stages.decoders import with_lora
from taskpgm.stages.estimate import FLOAT32, Cost, Estimate
from taskpgm.stages.stage_artefact import StageArtefact

MADE = "adapters"
PEFT_FILES = ["adapter_config.json", "adapter_model.safetensors"]


def adapter(context: Context, task: tasks.Task) -> Artefact:
    """The model of one task."""
    return Artefact(context.folder / MADE / task.name, adapter_key(context, task))


def adapter_key(context: Context, task: tasks.Task) -> str:
    """Hash of everything that the model of one task depends on, and of nothing of other tasks."""
    section = context.config.adapters.to_dict()
    if section["source"]:
        files = fingerprint(imported_folder(context, task), PEFT_FILES)
        return digest(context.proxy.key, section["lora"], files)
    # Keys that do not change the model.
    for free in ("source", "peft", "group", "memory", "checkpoint_every"):
        del section[free]
    return digest(
        context.proxy.key,
        section,
        context.config.tasks.length,
        context.config.seed,
        task.train_hash,
    )


def examples_seen(context: Context, task: tasks.Task) -> float:
    """How many examples the model of a task was trained on, counting repeats. For an imported model
    that is unknown: one pass over the task is assumed."""
    return float(done_facts(adapter(context, task).folder)["examples"])


def adapter_seconds(context: Context, task: tasks.Task) -> float:
    """What training the model of a task took here, its share of a group's time."""
    return float(done_facts(adapter(context, task).folder)["seconds"])


def load_adapters(
    context: Context, config: models.DecoderConfig, names: Sequence[str]
) -> Callable[[Sequence[int]], Any]:
    """A function that puts the trained weights of some tasks' models on devices: g indices into
    `names` -> arrays stacked along a new first axis, [g ...].

    All are kept in host memory: 316 full GPT-2 models are 150 GB, and a device needs few at a time.
    """
    like = jax.eval_shape(
        partial(models.init_lora if config.lora else models.init_params, config), jax.random.key(0)
    )
    everywhere = NamedSharding(context.mesh, PartitionSpec())
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), like)
    held = jax.tree.map(lambda x: np.empty((len(names), *x.shape), x.dtype), like)
    for i, name in enumerate(names):
        folder: Path = context.folder / MADE / name
        try:
            model = training.restore_tree(folder / "weights", one)
        except (training.Damaged, FileNotFoundError) as error:
            raise OSError(f"{error}; {recovery_hint(folder)}") from error
        jax.tree.map(lambda into, x: into.__setitem__(i, x), held, model)  # noqa: B023
    return lambda chosen: jax.tree.map(
        lambda x: training.place(x[np.asarray(chosen)], everywhere), held
    )


# --- PEFT folders --------------------------------------------------------------------------------
def imported_folder(context: Context, task: tasks.Task) -> Path:
    """The PEFT folder of a task below `adapters.source`.

    Raises:
      ValueError: it does not exist.
    """
    source = context.config.adapters.source
    folder = Path(source).expanduser() / task.name
    for name in PEFT_FILES:
        if not (folder / name).is_file():
            raise ValueError(
                f"adapters.source={source}: no {folder / name}; every task needs a PEFT folder of "
                "its own there, named as the task is"
            )
    return folder


def import_adapter(context: Context, config: models.DecoderConfig, task: tasks.Task) -> Any:
    """The adapter in a task's PEFT folder, in the shape of `config.lora`.

    Raises:
      ValueError: it is not plain LoRA, is for another model, or does not fit adapters.lora.
    """
    folder = imported_folder(context, task)
    settings, lora = models.load_peft(folder, config)
    try:
        return models.fit_lora(config, settings, lora)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}; see to adapters.lora") from error


def check_import(context: Context) -> None:
    """Refuses an `adapters.source` that lacks a task or has an adapter that does not fit the model.

    All are read that have not been taken over yet.

    Raises:
      ValueError: names the folder and what is wrong with it.
    """
    if not context.config.adapters.source or context.config.affinity.matrix:
        return
    for task in context.tasks:
        imported_folder(context, task)
    config = adapted_config(context)
    if config.lora is None:  # `validate` refuses it
        return
    for task in progress.counted(context.tasks, "adapters", len(context.tasks), unit="task"):
        if not adapter(context, task).is_done():
            import_adapter(context, config, task)


def adapted_config(context: Context) -> models.DecoderConfig:
    """The model that single-task adapters belong to; before it is pretrained, what it will be."""
    return with_lora(context.decoder(context.proxy), context.config.adapters)


@dataclass(frozen=True)
class ImportedModels(StageArtefact):
    """adapters/TASK, imported from PEFT folders, which may have been trained anywhere."""

    def is_done(self) -> bool:
        return all(adapter(self.context, task).is_done() for task in self.context.tasks)

    def begin(self) -> None:
        """Nothing: every task has its own folder."""

    def finish(self, **facts: Any) -> None:
        """Nothing: every task has its own mark."""

    def make(self) -> dict[str, Any]:
        context, config = self.context, adapted_config(self.context)
        everywhere = NamedSharding(context.mesh, PartitionSpec())
        for task in context.tasks:
            one = adapter(context, task)
            if one.is_done():
                continue
            lora = import_adapter(context, config, task)
            one.begin()
            placed = jax.tree.map(lambda x: training.place(np.asarray(x), everywhere), lora)
            training.save_tree(one.folder / "weights", placed)
            one.finish(steps=0, examples=float(len(task.train)), seconds=0.0)
        return {}

    def cost(self, estimate: Estimate) -> Cost:
        context, n = self.context, len(self.context.tasks)
        config = with_lora(estimate.decoder(context.proxy), context.config.adapters)
        each = training.num_adapter_params(config)
        source = context.config.adapters.source
        return Cost(f"{n} x {each / 1e6:,.2f}M parameters from {source}", 0.0, FLOAT32 * each * n)

    def seconds(self) -> float:
        return sum(adapter_seconds(self.context, task) for task in self.context.tasks)

    def summary(self) -> str:
        source = self.context.config.adapters.source
        return f"{len(self.context.tasks)} models of one task each, taken over from {source}"


@dataclass(frozen=True)
class PeftFolders(StageArtefact):
    """adapters/TASK/peft of every task, for `peft.PeftModel.from_pretrained`."""

    def folders(self) -> list[Path]:
        return [adapter(self.context, task).folder / "peft" for task in self.context.tasks]

    @on_primary
    def is_done(self) -> bool:
        # Training a model again removes its old folder; adapter_config.json is written last.
        return all((folder / PEFT_FILES[0]).is_file() for folder in self.folders())

    def begin(self) -> None:
        """Nothing: these folders are inside the tasks' folders."""

    def finish(self, **facts: Any) -> None:
        """Nothing: a folder is complete once it has its adapter_config.json."""

    def make(self) -> dict[str, Any]:
        context, config = self.context, adapted_config(self.context)
        base = context.config.proxy.path or context.config.base.path or str(context.base.path)
        for task, folder in zip(context.tasks, self.folders(), strict=True):
            stacked = load_adapters(context, config, [task.name])([0])
            models.save_peft(folder, config, jax.tree.map(lambda x: x[0], stacked), base)
        say("adapters", f"PEFT folders: {context.folder / MADE}/TASK/peft")
        return {}

    def cost(self, estimate: Estimate) -> Cost:
        config = with_lora(estimate.decoder(self.context.proxy), self.context.config.adapters)
        n, each = len(self.context.tasks), training.num_adapter_params(config)
        return Cost(f"{n} PEFT folders", disk=FLOAT32 * each * n)

    def summary(self) -> str:
        return f"{len(self.context.tasks)} written"
