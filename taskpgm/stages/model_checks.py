"""Checks of models before anything is spent: do the tasks fit them, and they this machine?"""

from typing import Any

import jax
import numpy as np

from taskpgm import models, training
from taskpgm.affinity import MAX_BINS, choose_kernel, layout
from taskpgm.stages.context import Context
from taskpgm.stages.decoders import with_lora
from taskpgm.stages.devices import Machine, machine
from taskpgm.stages.estimate import Estimate, size
from taskpgm.stages.pretrained import Source
from taskpgm.tasks import Task, check_vocabulary, encode


# --- Models --------------------------------------------------------------------------------------
def named_models(context: Context) -> list[tuple[str, Source]]:
    """("base.path=...", the model), and the proxy's where another is named. The embedded base is
    one too; with a matrix there is none."""
    config = context.config
    if context.weights_only:
        return []
    of = f"base.path={config.base.path}" if config.base.path else "the embedded base"
    named = [(of, context.base)]
    if config.proxy.path:
        named.append((f"proxy.path={config.proxy.path}", context.proxy))
    return named


def check_models(context: Context) -> None:
    """Refuses a base or proxy that the tasks do not fit.

    Raises:
      ValueError: names the key; a row is longer than the model's positions, the tokenizer cannot
        encode the examples, or it writes a token that the model has no embedding for.
    """
    for where, source in named_models(context):
        if context.planning and has_weights(source):
            models.check_hf(source.path)
        decoder, length = context.decoder(source), context.config.tasks.length
        if length > decoder.max_position:
            raise ValueError(
                f"tasks.length={length}: the model of {where} has {decoder.max_position} positions;"
                f" set --config.tasks.length={decoder.max_position} or less"
            )
        for task in context.judged:
            check_task(context, source, task, decoder, where)


def check_task(
    context: Context, source: Source, task: Task, decoder: models.DecoderConfig, where: str
) -> None:
    """Refuses a task of which a split has no row that fits, or a token that is not embedded."""
    tokenizer, length = context.tokenizer(source), context.config.tasks.length
    larger = len(tokenizer) > decoder.vocab_size
    for name in ("train", "heldout", "test"):
        examples = getattr(task, name)
        if not examples:  # a target needs no training split
            continue
        # A tokenizer that fits its model is tried until one example fits: does it have EOS, a
        # template, and is there room for an answer?
        tried = [examples] if larger else [examples[:1], examples]
        try:
            ids = next(filter(None, (encode(tokenizer, some, length).ids for some in tried)), None)
        except ValueError as error:
            raise ValueError(f"{where}: task {task.name}: {error}") from error
        if ids is None:
            raise ValueError(
                f"tasks.length={length}: task {task.name}: none of its {len(examples)} responses "
                f"of the {name} split fits, with the tokens of {where}: raise it or drop the task"
            )
        check_vocabulary(tokenizer, ids, decoder.vocab_size, f"{where}: task {task.name}")


def has_weights(source: Source) -> bool:
    """Whether a folder has any; which ones is for `models.check_hf`."""
    return any(source.path.glob("*.safetensors*"))


def models_without_weights(context: Context) -> list[str]:
    """The named models that a plan knows only by their config.json."""
    try:
        named = named_models(context)
    except (ValueError, OSError):  # said already
        return []
    return [
        where
        for where, source in named
        if context.is_there(source) and not source.key and not has_weights(source)
    ]


def check_matrices(context: Context) -> None:
    """Refuses LoRA on matrices that the model does not have, and more JSD entries than it has."""
    if context.weights_only:
        return
    for section, source in (("adapters", context.proxy), ("train", context.base)):
        settings, decoder = context.config[section], context.decoder(source)
        known = training.matrices(decoder)
        absent = [name for name in settings.lora.targets if name not in known]
        always = section == "adapters" and any(
            x.split(":")[0] == "less" for x in context.config.compare
        )
        if (settings.mode == "lora" or always) and absent:
            raise ValueError(
                f"{section}.lora.targets: {absent[0]!r} is no matrix of this {decoder.architecture}"
                f": it has {', '.join(known)}"
            )
    entries, kept = context.decoder(context.proxy).vocab_size, context.config.affinity.vocab_top_k
    if kept >= entries:
        raise ValueError(
            f"affinity.vocab_top_k={kept}: the model has {entries} entries; 0 is all of them"
        )


# --- This machine --------------------------------------------------------------------------------
def check_mesh(context: Context) -> None:
    """Refuses a mesh that does not lie on the devices at hand."""
    if not context.weights_only:
        context.mesh  # noqa: B018 (raises)


def check_memory(context: Context) -> None:
    """Refuses what needs more than twice a device's memory, which no rough estimate can be wrong
    about; a plan says sooner what does not fit.

    Raises:
      ValueError: names the keys.
    """
    if context.weights_only:
        return
    estimate, config = Estimate(context, machine(None)), context.config
    length, mesh = config.tasks.length, estimate.mesh
    base, proxy = context.decoder(context.base), context.decoder(context.proxy)
    shapes: dict[str, tuple[models.DecoderConfig, dict[str, Any]]] = {
        "adapters": (
            with_lora(proxy, config.adapters),
            {
                "rows": config.adapters.batch_size,
                "group": max(1, min(config.adapters.group, len(context.tasks))),
            },
        ),
        "train": (
            with_lora(base, config.train),
            {
                "rows": config.train.batch_size,
                "accumulate": config.train.accumulate,
                "group": max(1, min(config.train.group, len(config.compare) * config.train.seeds)),
            },
        ),
    }
    if not config.base.path:
        shapes["embedded"] = (base, {"rows": config.embedded.batch_size})
    layout(
        len(context.tasks),
        shapes["adapters"][0],
        length=length,
        batch_size=config.affinity.batch_size,
        memory=config.affinity.memory * 2**30,
        bins=min(MAX_BINS, max(len(task.heldout) for task in context.judged)),
        contexts=config.affinity.contexts,
    )
    for section, (decoder, shape) in shapes.items():
        need = training.estimate_memory(decoder, length=length, mesh=mesh, **shape).total
        if need > 2 * estimate.machine.memory:
            rows, fewer = shape["rows"], f"{section}.group, " * (shape.get("group", 1) > 1)
            raise ValueError(
                f"{section}.batch_size={rows}: a step needs about {size(need)} of a device that "
                f"has {size(estimate.machine.memory)}: lower it, {fewer}tasks.length, or the "
                "model's size"
            )


def check_kernels(context: Context, on: Machine) -> None:
    """Refuses kernels that the devices do not have, or the rows do not fit.

    Raises:
      ValueError: names the key.
    """
    config = context.config
    if context.weights_only:
        return
    if not context.planning:
        with jax.set_mesh(context.mesh):
            choose_kernel(config.affinity.kernel)
    elif config.affinity.kernel == "pallas" and (on.kind != "tpu" or on.count > 1):
        raise ValueError("affinity.kernel='pallas' runs on one TPU device only: use 'xla'")
    chosen = config.base.attention
    if chosen == "splash" and on.kind != "tpu":
        raise ValueError(f"base.attention={chosen!r} runs on TPUs only: use 'auto'")
    if chosen in ("auto", "reference"):
        return
    for where, source in named_models(context):
        decoder = context.decoder(source)
        try:
            trace(decoder, config.tasks.length)
        except ValueError as error:
            raise ValueError(f"base.attention={chosen!r}, {where}: {error}") from error


def trace(config: models.DecoderConfig, length: int) -> None:
    """Goes through a forward pass of one packed row without computing anything."""
    params = jax.eval_shape(lambda key: models.init_params(config, key), jax.random.key(0))
    row = jax.ShapeDtypeStruct((1, length), np.int32)

    def hidden(params: Any, tokens: Any, positions: Any, segment_ids: Any) -> Any:
        return models.Decoder(config).apply(
            {"params": params}, tokens, positions, segment_ids, method="hidden"
        )

    jax.eval_shape(hidden, params, row, row, row)
