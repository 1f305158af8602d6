"""Stage `affinity`: how tasks relate, by scoring every model on every held-out set, or as given."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from taskpgm import affinity, mixture, training
from taskpgm.artefact import digest
from taskpgm.multihost import end_if_asked, on_primary
from taskpgm.progress import Reporter
from taskpgm.stages.adapter_files import adapter_key, examples_seen, load_adapters
from taskpgm.stages.affinity_files import KINDS, MADE, save_jsd, save_pmi, save_transfer
from taskpgm.stages.context import Context, say
from taskpgm.stages.decoders import with_lora
from taskpgm.stages.estimate import Cost, Estimate, fits, idle, size
from taskpgm.stages.given_scores import load_likelihoods, load_losses
from taskpgm.stages.matrix_file import TaskNames, load_matrix, save_arrays
from taskpgm.stages.stage_artefact import StageArtefact, Unit

SECTIONS = ("affinity",)
FREE = ("memory", "batch_size")  # how it is computed, not what


def artefacts(context: Context) -> Iterator[StageArtefact]:
    """The affinity matrices, computed from scores or read from a file."""
    yield affinities(context)


def affinities(context: Context) -> "ScoredAffinities | GivenAffinity":
    """The artefact that holds the matrices."""
    section, folder = context.config.affinity, context.folder / MADE
    if section.matrix:
        path = Path(section.matrix)
        names, _ = given(context)  # a bad file is refused before anything is computed
        files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        content = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
        settings = (section.kind, section.bootstrap, context.config.seed)
        return GivenAffinity(folder, digest(content, *settings, names.mixed), context)
    settings = {k: v for k, v in section.to_dict().items() if k not in FREE}
    models_of = [adapter_key(context, task) for task in context.tasks]
    return ScoredAffinities(folder, digest(models_of, context.judged_key, settings), context)


@dataclass(frozen=True)
class ScoredAffinities(StageArtefact):
    """pmi.npz and jsd.npz, with intervals and resamples, from the scores under scores/."""

    def begin(self) -> None:
        # Not emptied: scores are found by content, so a new task costs one row and one column.
        self.reopen()

    def make_parts(self, share: Callable[[Sequence[Unit]], None]) -> None:
        """The scores of each task."""
        names = [task.name for task in self.context.judged]

        def share_tasks(tasks: Sequence[affinity.TaskToScore]) -> None:
            share([Unit(names[each.task], each.is_done, each.make) for each in tasks])

        compute_scores(self.context, self.folder / "scores", share_tasks)

    def planned_parts(self) -> Sequence[tuple[str, bool]]:
        return [(task.name, False) for task in self.context.judged]

    def make(self) -> dict[str, Any]:
        scores = compute_scores(self.context, self.folder / "scores")
        cells = len(self.context.tasks) * len(self.context.judged)
        say("affinity", f"{len(scores.computed)} of {cells} cells computed")
        save_affinities(self.context, scores)
        return {}

    def cost(self, estimate: Estimate) -> Cost:
        context, section = self.context, self.context.config.affinity
        length, n = context.config.tasks.length, len(context.tasks)
        config = with_lora(estimate.decoder(context.proxy), context.config.adapters)
        examples = [len(task.heldout) for task in context.judged]
        try:
            plan = affinity.plan(
                config,
                [part.scored_of_row for part in estimate.split(context.proxy, "heldout")],
                num_models=n,
                heldout_examples=sum(examples),
                length=length,
                batch_size=section.batch_size,
                memory=section.memory * 2**30,
                contexts=section.contexts,
                vocab_top_k=section.vocab_top_k or None,
                base=True,
                parts=estimate.mesh["data"] * estimate.mesh["fsdp"],
                bins=min(affinity.MAX_BINS, max(examples)),
            )
        except ValueError as error:  # affinity.memory is too small for two models
            return Cost(f"{n} x {n} scores", problem=str(error))
        rows = plan.layout.batch_size
        group = min(plan.layout.group, n)
        memory = plan.memory + training.forward_memory(
            config, rows=plan.layout.batch_size, length=length, group=group, mesh=estimate.mesh
        )
        each = training.model_bytes(config)
        problem = fits(estimate, memory, "affinity.memory or affinity.batch_size")
        used = estimate.used(rows)
        problem = problem or idle(
            estimate, used, rows, "affinity.batch_size (and raise affinity.memory)"
        )
        if n * each > estimate.machine.host_memory:
            problem = (
                f"affinity: {n} models need {size(n * each)} of a host's memory, it has "
                f"{size(estimate.machine.host_memory)}: adapters.mode=lora or a smaller "
                "adapters.lora.rank"
            )
        return Cost(
            f"{plan.text}; the models wait in the host's memory, {size(n * each)}, {group} at a "
            f"time compute, {size(plan.loads * each)} go to the device in all",
            plan.flops,
            plan.disk,
            memory,
            problem,
            other_flops=plan.other_flops,
            share=used,
            other_share=1 / estimate.machine.count,  # every device reduces all pairs
            scored=plan.positions,
        )

    def summary(self) -> str:
        return f"{', '.join(KINDS)} and transfer of {len(self.context.tasks)} tasks"


@dataclass(frozen=True)
class GivenAffinity(StageArtefact):
    """The matrices that follow from a file of affinities, losses or likelihoods
    (`affinity.kind`)."""

    uses_models: ClassVar[bool] = False

    def make(self) -> dict[str, Any]:
        context, section = self.context, self.context.config.affinity
        names, found = given(context)
        if isinstance(found, affinity.Scores):
            save_pmi(context, names, found)
            save_transfer(context, names, found)
        else:
            path = self.folder / f"{section.kind}.npz"
            save_arrays(path, affinity=found, tasks=np.array(names.mixed))
        return {"tasks": len(names.mixed)}

    def cost(self, estimate: Estimate) -> Cost:
        return Cost(f"read {self.context.config.affinity.matrix}")

    def summary(self) -> str:
        return f"from {self.context.config.affinity.matrix}"


def given(context: Context) -> tuple[TaskNames, np.ndarray | affinity.Scores]:
    """`read_given` of the config's file, in the order of the tasks where there are any.

    Raises:
      FileNotFoundError, ValueError: as there; or the file is of other tasks than `tasks.source`.
    """
    section, source = context.config.affinity, context.config.tasks.source
    names, found = read_given(Path(section.matrix), section.kind)
    if context.weights_only:
        return names, found
    for name in [*context.names, *names.mixed]:
        if name not in names.mixed or name not in context.names:
            there, absent = section.matrix, f"tasks.source={source}"
            if name not in names.mixed:
                there, absent = absent, there
            raise ValueError(f"{name!r} is a task of {there} and not of {absent}: name them alike")
    order = np.array([names.mixed.index(name) for name in context.names])
    names = names._replace(mixed=list(context.names))
    if not isinstance(found, affinity.Scores):
        return names, found[np.ix_(order, order)]
    place = np.append(np.argsort(order), np.arange(len(order), found.num_tasks))
    values = found.log_likelihood[order]
    return names, replace(found, log_likelihood=values, task=place[found.task])


def read_given(path: Path, kind: str) -> tuple[TaskNames, np.ndarray | affinity.Scores]:
    """The tasks and targets of a file, and its affinity or its log-likelihoods, checked.

    Raises:
      FileNotFoundError, ValueError: names the file, and suggests the `kind` that it looks like.
    """
    if kind == "loss":
        return load_losses(path)
    if kind == "likelihood":
        return load_likelihoods(path)
    matrix, names = load_matrix(path)
    hint = "" if (matrix <= 0).any() else "; of losses say --config.affinity.kind=loss"
    try:
        mixture.energy_from_affinity(matrix, 1.0)
    except ValueError as error:
        raise ValueError(f"{path}: {error}{hint}") from error
    if kind == "pmi" and hint and len(matrix) > 1:
        raise ValueError(
            f"{path}: a PMI affinity has no positive diagonal; of similarities say "
            f"--config.affinity.kind=jsd{hint}"
        )
    return TaskNames(names), matrix


def compute_scores(
    context: Context,
    folder: Path,
    share: Callable[[Sequence[affinity.TaskToScore]], None] | None = None,
) -> affinity.Scores:
    """Scores of every single-task model on every held-out set; those in `folder` are reused."""
    section = context.config.affinity
    config, params = context.load_model(context.proxy)
    config = with_lora(config, context.config.adapters)
    models_of = load_adapters(context, config, context.names)
    rows = [context.rows(context.proxy, task.heldout, task.name) for task in context.judged]
    with Reporter("affinity", len(rows), unit="task") as report:

        def progress(done: int, total: int, text: str) -> None:
            report.update(done, text)
            end_if_asked()

        return affinity.compute_scores(
            config,
            params,
            models_of,
            rows,
            [int(part.example.max()) + 1 for part in rows],
            model_keys=[adapter_key(context, task) for task in context.tasks],
            base_key=context.proxy.key,
            folder=folder,
            memory=section.memory * 2**30,
            batch_size=section.batch_size,
            contexts=section.contexts,
            vocab_top_k=section.vocab_top_k or None,
            kernel=section.kernel,
            progress=progress,
            share=share,
        )


@on_primary
def save_affinities(context: Context, scores: affinity.Scores) -> None:
    """Every matrix that follows from the scores."""
    names = TaskNames(context.names, [task.name for task in context.targets])
    save_pmi(context, names, scores)
    save_jsd(context, names, scores)
    seen = [examples_seen(context, task) for task in context.tasks]
    save_transfer(context, names, scores, seen)
