"""`--dry_run`: what each stage would do and cost, without doing it.

Counts of tokens are exact where the tokenizer exists already, else estimated from bytes ("about").
FLOPs follow `training.flops_per_token`; memory follows `training.estimate_memory`.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np

from taskpgm import affinity, models, tasks, training
from taskpgm.multihost import on_primary
from taskpgm.stages import adapters, prepare
from taskpgm.stages import workdir as wd
from taskpgm.stages.context import Context, Source

BYTES_PER_TOKEN = 3.0  # of English text under a vocabulary of some ten thousand pieces
EMBEDDED_BYTES_PER_TOKEN = 1.5  # of the embedded suite, whose answers are words and digits
MOST_EXAMPLES = 100_000  # more are not tokenized for a plan
FLOAT32 = 4


@dataclass(frozen=True)
class Row:
    """One line of the plan; None where a number makes no sense."""

    stage: str
    state: str  # "done", "to do", or how much of it is done
    work: str
    flops: float | None = None
    disk: float | None = None  # bytes written
    memory: float | None = None  # bytes per device


@on_primary
def print_plan(context: Context, stages: Sequence[str]) -> None:
    """Prints the plan of the given stages as a table, and the totals."""
    rows = [row for name in stages for row in PLANS[name](Estimate(context))]
    print(f"plan for {context.folder} on {len(jax.devices())} x {jax.devices()[0].device_kind}\n")
    table = [("stage", "state", "FLOPs", "disk", "memory/device", "work")]
    table += [
        (r.stage, r.state, amount(r.flops), size(r.disk), size(r.memory), r.work) for r in rows
    ]
    widths = [max(len(line[i]) for line in table) for i in range(6)]
    for line in table:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())
    todo = [r for r in rows if r.state != "done"]
    flops, disk = (sum(getattr(r, x) or 0 for r in todo) for x in ("flops", "disk"))
    peak = training.peak_flops()
    hours = f", {flops / (0.4 * peak * len(jax.devices())) / 3600:.1f} h at 40% MFU" if peak else ""
    free = shutil.disk_usage(
        next(p for p in (context.folder, *context.folder.absolute().parents) if p.exists())
    ).free
    print(f"\nto do: {amount(flops)} FLOPs{hours}; {size(disk)} on disk, {size(free)} free")


@dataclass(frozen=True)
class Estimate:
    """Sizes that several stages' plans need."""

    context: Context

    def decoder(self, source: Source) -> models.DecoderConfig:
        """The architecture of a model that may not exist yet."""
        if (source.path / "config.json").is_file():
            return self.context.decoder_config(models.DecoderConfig.from_hf(source.path))
        return self.context.decoder_config(prepare.embedded_config(self.context))

    def count(self, source: Source, examples: Sequence[tasks.Example]) -> tuple[int, int]:
        """Tokens of some examples, prompts, responses and ends; and those that are scored."""
        section = self.context.config
        if (source.path / "tokenizer.json").is_file() and len(examples) <= MOST_EXAMPLES:
            encoded = tasks.encode(self.context.tokenizer(source), examples, section.tasks.length)
            return sum(map(len, encoded.ids)), sum(int(x.sum()) for x in encoded.scored)
        embedded = source == self.context.base and not section.base.path
        each = EMBEDDED_BYTES_PER_TOKEN if embedded else BYTES_PER_TOKEN
        turns = [turn for x in examples for turn in x.messages or ()]
        answers = sum(len(x.response) for x in examples)
        answers += sum(len(said) for role, said in turns if role == "assistant")
        asked = sum(len(x.prompt) for x in examples)
        asked += sum(len(said) for role, said in turns if role != "assistant")
        return tuple(int(said / each) + len(examples) for said in (asked + answers, answers))

    def tokens(self, source: Source, examples: Sequence[tasks.Example]) -> int:
        return self.count(source, examples)[0]

    @cached_property
    def adapter_rows(self) -> list[int]:
        """Packed rows of every task's training split, for the proxy."""
        length = self.context.config.tasks.length
        return [
            max(1, -(-self.tokens(self.context.proxy, task.train) // length))
            for task in self.context.tasks
        ]

    def split(self, source: Source, name: str) -> tuple[int, int]:
        """`count` of all tasks' "heldout" or "test" examples."""
        each = [self.count(source, getattr(task, name)) for task in self.context.tasks]
        return tuple(map(sum, zip(*each, strict=True)))


def plan_tasks(estimate: Estimate) -> list[Row]:
    context = estimate.context
    done = (context.folder / "tasks.json").is_file()
    text = (
        f"{len(context.tasks)} tasks, {context.sizes.sum():,} training, "
        f"{sum(len(t.heldout) for t in context.tasks):,} held-out and "
        f"{sum(len(t.test) for t in context.tasks):,} test examples"
    )
    return [Row("tasks", "done" if done else "to do", text)]


def plan_base(estimate: Estimate) -> list[Row]:
    context = estimate.context
    config, section = estimate.decoder(context.base), context.config.embedded
    named = f"{config.num_params / 1e6:,.2f}M parameters ({config.architecture})"
    if context.config.base.path:
        return [Row("base", "done", f"{context.base.path}: {named}")]
    length = context.config.tasks.length
    tokens = section.steps * section.batch_size * length
    return [
        Row(
            "base",
            "done" if wd.is_done(context.base.path, context.base.key) else "to do",
            f"pretrain {named} on {tokens:,} tokens",
            tokens * training.flops_per_token(config, length),
            FLOAT32 * config.num_params,
            training.estimate_memory(
                config, rows=section.batch_size, length=length, mesh=context.mesh.shape
            ).total,
        )
    ]


def plan_adapters(estimate: Estimate) -> list[Row]:
    context = estimate.context
    section, length = context.config.adapters, context.config.tasks.length
    config = adapters.with_lora(estimate.decoder(context.proxy), section)
    steps = [adapters.adapter_steps(rows, section) for rows in estimate.adapter_rows]
    group = section.group or adapters.group_size(context, config, len(steps))
    tokens = sum(steps) * section.batch_size * length
    done = sum(
        wd.is_done(adapters.adapter_folder(context, t.name), adapters.adapter_key(context, t))
        for t in context.tasks
    )
    each = training.num_adapter_params(config) if config.lora else config.num_params
    return [
        Row(
            "adapters",
            state(done, len(steps)),
            f"{len(steps)} x {each / 1e6:,.2f}M {section.mode} parameters, {group} side by side, "
            f"{min(steps)} to {max(steps)} steps, {tokens:,} tokens",
            tokens * training.flops_per_token(config, length),
            # the models, and two checkpoints of the group at hand, each with two moments a weight
            FLOAT32 * each * (len(steps) + 2 * 3 * group),
            training.estimate_memory(
                config,
                rows=section.batch_size,
                length=length,
                group=group,
                mesh=context.mesh.shape,
            ).total,
        )
    ]


def plan_affinity(estimate: Estimate) -> list[Row]:
    context = estimate.context
    if context.config.affinity.matrix:
        return [Row("affinity", "to do", f"read {context.config.affinity.matrix}")]
    section, length = context.config.affinity, context.config.tasks.length
    config = adapters.with_lora(estimate.decoder(context.proxy), context.config.adapters)
    n = len(context.tasks)
    tokens, scored = estimate.split(context.proxy, "heldout")
    plan = affinity.plan(
        config,
        num_tasks=n,
        heldout_tokens=tokens,
        scored_tokens=scored,
        heldout_examples=sum(len(task.heldout) for task in context.tasks),
        length=length,
        batch_size=section.batch_size,
        memory=section.memory * 2**30,
        contexts=section.contexts,
    )
    group = min(plan.layout.group, n)
    memory = plan.memory + training.forward_memory(
        config,
        rows=plan.layout.batch_size,
        length=length,
        group=group,
        mesh=context.mesh.shape,
    )
    each = training.model_bytes(config)
    text = (
        f"{plan.text}; the models wait in the host's memory, {size(n * each)} (it has "
        f"{size(training.host_memory())}), {group} at a time compute, {size(plan.loads * each)} go "
        "to the device in all"
    )
    done = all((context.folder / "affinity" / f"{k}.npz").is_file() for k in ("pmi", "jsd"))
    return [Row("affinity", state(done, 1), text, plan.flops, plan.disk, memory)]


def plan_mixture(estimate: Estimate) -> list[Row]:
    context = estimate.context
    done = (context.folder / "mixture" / wd.MARK).is_file()
    section = context.config.mixture
    count = len(context.config.compare)
    text = f"{count} mixtures of {section.budget:,} examples, ratio {section.ratio:g}"
    return [Row("mixture", "done" if done else "to do", text)]


def plan_runs(estimate: Estimate) -> list[Row]:
    context = estimate.context
    section, length = context.config.train, context.config.tasks.length
    config = adapters.with_lora(estimate.decoder(context.base), section)
    mean = estimate.tokens(context.base, [x for t in context.tasks for x in t.train[:20]]) / sum(
        min(20, len(t.train)) for t in context.tasks
    )
    rows = max(1, int(np.ceil(mean * context.config.mixture.budget / length)))
    steps = section.steps or -(-int(np.ceil(section.epochs * rows)) // section.batch_size)
    names = context.config.compare
    count = len(names) * section.seeds
    tokens = count * steps * section.batch_size * length
    done = len(list((context.folder / "runs").glob(f"*/{wd.MARK}")))
    return [
        Row(
            "runs",
            state(done, count),
            f"{count} x {config.num_params / 1e6:,.2f}M parameters ({section.mode}), about "
            f"{steps} steps, {tokens:,} tokens",
            tokens * training.flops_per_token(config, length),
            # the model, and a checkpoint with two moments for each trained weight
            count * FLOAT32 * config.num_params * (4 if config.lora is None else 1),
            training.estimate_memory(
                config,
                rows=section.batch_size,
                length=length,
                accumulate=section.accumulate,
                mesh=context.mesh.shape,
            ).total,
        )
    ]


def plan_evaluation(estimate: Estimate) -> list[Row]:
    context = estimate.context
    config, length = estimate.decoder(context.base), context.config.tasks.length
    count = len(context.config.compare) * context.config.train.seeds + 1
    done = len(list((context.folder / "evaluation").glob(f"*/{wd.MARK}")))
    tokens, _ = estimate.split(context.base, "test")
    return [
        Row(
            "evaluation",
            state(done, count),
            f"{count} models on {tokens:,} test tokens each",
            count * tokens * training.forward_flops_per_token(config, length),
        )
    ]


def plan_report(estimate: Estimate) -> list[Row]:
    return [Row("report", "to do", str(estimate.context.folder / "report" / "index.html"))]


PLANS = {
    "tasks": plan_tasks,
    "base": plan_base,
    "adapters": plan_adapters,
    "affinity": plan_affinity,
    "mixture": plan_mixture,
    "runs": plan_runs,
    "evaluation": plan_evaluation,
    "report": plan_report,
}


def state(done: int, count: int) -> str:
    """ "done", "to do", or "3 of 24 done"."""
    return "done" if done == count else f"{done} of {count} done" if done else "to do"


def amount(x: float | None) -> str:
    """1.2e+15 FLOPs, or nothing."""
    return "" if x is None else f"{x:.1e}"


def size(x: float | None) -> str:
    """Bytes in the unit that suits."""
    if x is None:
        return ""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if x < 1024 or unit == "TiB":
            return f"{x:.1f} {unit}"
        x /= 1024
    raise AssertionError
