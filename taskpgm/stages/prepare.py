"""Stages `tasks` and `base`: what is mixed, and the model it is mixed for."""

import time
from functools import partial
from typing import Any

import jax

from taskpgm import evaluation, models, tasks, training
from taskpgm.multihost import on_primary
from taskpgm.stages import mixtures
from taskpgm.stages import workdir as wd
from taskpgm.stages.context import Context, on_mesh, say


@on_primary
def tasks_stage(context: Context) -> None:
    """Reads every task and writes tasks.json: names, families, sizes, content hashes."""
    mixtures.check(context.config, context.sizes)
    if context.config.evaluation.harness:  # refused now, not after hours of training
        section = context.config.evaluation
        evaluation.check_harness(list(section.harness), section.harness_path)
    path = context.folder / "tasks.json"
    listed = {
        "key": context.tasks_key,
        "tasks": [
            {
                "name": task.name,
                "family": task.family,
                "train": len(task.train),
                "heldout": len(task.heldout),
                "test": len(task.test),
                "hash": task.content_hash,
                "notes": list(task.notes),
            }
            for task in context.tasks
        ],
    }
    before = wd.read_json(path) if path.is_file() else None
    if before == listed:
        say("tasks", f"done already: {len(context.tasks)} tasks")
        return
    if before is not None:
        say_changes(before["tasks"], listed["tasks"])
    wd.write_json(path, listed)
    families = len({task.family for task in context.tasks})
    say(
        "tasks",
        f"{len(context.tasks)} tasks of {families} families, {context.sizes.sum()} training, "
        f"{sum(len(task.heldout) for task in context.tasks)} held-out and "
        f"{sum(len(task.test) for task in context.tasks)} test examples",
    )
    for note in sorted({note for task in context.tasks for note in task.notes}):
        say("tasks", note)


def say_changes(before: list[dict], now: list[dict]) -> None:
    """Says which tasks came, went or changed since the workdir was last used."""
    old = {task["name"]: task["hash"] for task in before}
    new = {task["name"]: task["hash"] for task in now}
    for verb, names in {
        "new": new.keys() - old.keys(),
        "gone": old.keys() - new.keys(),
        "changed, so what follows from it is made again": {
            name for name in old.keys() & new.keys() if old[name] != new[name]
        },
    }.items():
        for name in sorted(names):
            say("tasks", f"{name} is {verb}")


@on_mesh
def base_stage(context: Context) -> None:
    """Makes sure of the base model: says which one is named, or pretrains the embedded one."""
    source = context.base
    if context.config.proxy.path:
        say("base", f"proxy {context.proxy.path} (key {context.proxy.key})")
    if context.config.base.path:
        say("base", f"{source.path} (key {source.key})")
        return
    if wd.is_done(source.path, source.key):
        with context.reading(source):
            models.check_hf(source.path)
        say("base", "done already")
        return
    start = time.monotonic()
    wd.begin(source.path, source.key)
    pretrain_embedded(context)
    wd.mark_done(source.path, source.key, seconds=round(time.monotonic() - start, 1))


def pretrain_embedded(context: Context) -> None:
    """Trains a tokenizer and a small Llama-shaped model, and saves them as a Hugging Face folder.

    The text is Python's own documentation and a thin sample of every task's training rows, so that
    the prompts' formats are not strange to it; a held-out or test row is never seen.
    """
    section, folder, seed = context.config.embedded, context.base.path, context.config.seed
    documentation, tokenizer = embedded_text(context)
    sample = [x for task in context.tasks for x in task.train[: section.examples_per_task]]
    config = context.decoder_config(embedded_config(context, tokenizer))

    length = context.config.tasks.length
    rows = [
        tasks.pack(tasks.encode_text(tokenizer, documentation, length), length),
        tasks.pack(tasks.encode(tokenizer, sample, length), length),
    ]
    share = section.task_share
    batches = tasks.stream(
        rows, weights=[1 - share, share], batch_size=section.batch_size, seed=seed
    )
    say(
        "base",
        f"pretraining {config.num_params / 1e6:.2f}M parameters on "
        f"{section.steps * section.batch_size * length / 1e3:.0f}K tokens of Python's "
        "documentation and of training tasks",
    )
    optimizer = training.make_optimizer(section.optimizer.to_dict())
    params = training.init_sharded(
        partial(models.init_params, config),
        jax.random.key(seed),
        axes=models.logical_axes(config),
    )
    state = training.create_state(optimizer, params, axes=models.logical_axes(config))
    state = training.fit(
        training.make_train_step(config, optimizer, state),
        state,
        batches.__getitem__,
        steps=section.steps,
        directory=folder / "training",
        name="base",
        checkpoint_every=section.checkpoint_every,
        log_every=context.config.log_every,
        seed=seed,
    )
    models.save_hf(folder, config, state.trainable)
    on_primary(tokenizer.save_pretrained)(folder)


@on_primary
def embedded_text(context: Context) -> tuple[list[str], Any]:
    """Python's documentation, which differs a little between versions, and a tokenizer for it."""
    section = context.config.embedded
    documentation = tasks.corpus.documentation(context.config.seed)
    # Pieces of words are cheap to learn, so the tokenizer reads more of the training rows.
    read = [x for task in context.tasks for x in task.train[: 4 * section.examples_per_task]]
    texts = documentation + [x.prompt + x.response for x in read]
    return documentation, tasks.corpus.train_tokenizer(texts, section.vocab_size)


def embedded_config(context: Context, tokenizer=None) -> models.DecoderConfig:
    """The small Llama that the quickstart pretrains; without its tokenizer, for a plan."""
    section = context.config.embedded
    return models.DecoderConfig.from_hf(
        {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": len(tokenizer) if tokenizer else section.vocab_size,
            "hidden_size": section.hidden_size,
            "intermediate_size": section.intermediate_size,
            "num_hidden_layers": section.num_layers,
            "num_attention_heads": section.num_heads,
            "num_key_value_heads": section.num_kv_heads,
            "max_position_embeddings": max(2 * context.config.tasks.length, 512),
            "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": getattr(tokenizer, "bos_token_id", None),
            "eos_token_id": getattr(tokenizer, "eos_token_id", None),
            "pad_token_id": getattr(tokenizer, "pad_token_id", None),
        }
    )
