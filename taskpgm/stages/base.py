"""Stage `base`: the model that is fine-tuned on mixtures. The user names it; otherwise a small one
is pretrained, in base/."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax

from taskpgm import models, tasks, training
from taskpgm.multihost import on_primary
from taskpgm.stages.context import Context, say
from taskpgm.stages.decoders import embedded_config
from taskpgm.stages.estimate import FLOAT32, Cost, Estimate, fits, idle
from taskpgm.stages.stage_artefact import StageArtefact
from taskpgm.stages.tasks import task_file

SECTIONS = ("base", "embedded")
MADE = "base"


def artefacts(context: Context) -> Iterator[StageArtefact]:
    """The base, named or pretrained; and the proxy, if the config names one."""
    if context.config.proxy.path:
        yield NamedBase(context.proxy.path, context.proxy.key, context, "proxy")
    kind = NamedBase if context.config.base.path else EmbeddedBase
    yield kind(context.base.path, context.base.key, context)


@dataclass(frozen=True)
class NamedBase(StageArtefact):
    """A Hugging Face folder outside the workdir: there is nothing to make."""

    def is_done(self) -> bool:
        return True

    def found(self) -> str:
        return f"{self.folder} (key {self.key})"

    def cost(self, estimate: Estimate) -> Cost:
        source = self.context.proxy if self.title else self.context.base
        return Cost(f"{self.folder}: {described(estimate.decoder(source))}")


@dataclass(frozen=True)
class EmbeddedBase(StageArtefact):
    """A small Llama trained from scratch, in base/.

    It is trained on Python's documentation and a small sample of every task's training examples, so
    that it knows the formats of the prompts; it never sees a held-out or test row.
    """

    def is_done(self) -> bool:
        if not super().is_done():
            return False
        with self.context.reading(self.context.base):
            models.check_hf(self.folder)
        return True

    def make(self) -> dict[str, Any]:
        context, section = self.context, self.context.config.embedded
        documentation, tokenizer = on_primary(lambda: context.embedded)()
        sample = [x for task in context.tasks for x in task.train[: section.examples_per_task]]
        config = context.decoder_config(embedded_config(context.config, tokenizer))
        length, seed = context.config.tasks.length, context.config.seed
        rows = [
            tasks.pack(tasks.encode_text(tokenizer, documentation, length), length),
            tasks.pack(tasks.encode(tokenizer, sample, length), length),
        ]
        share = section.task_share
        batches: Any = tasks.stream(
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
            directory=self.folder / "training",
            name="base",
            checkpoint_every=section.checkpoint_every,
            log_every=context.config.log_every,
            seed=seed,
        )
        models.save_hf(self.folder, config, state.trainable)
        on_primary(tokenizer.save_pretrained)(self.folder)
        return {"steps": section.steps}

    def finish(self, **facts: Any) -> None:
        super().finish(**facts)
        task_file(self.context).write()  # with what the tokenizer decides

    def cost(self, estimate: Estimate) -> Cost:
        config, section = estimate.decoder(self.context.base), self.context.config.embedded
        length = self.context.config.tasks.length
        tokens = section.steps * section.batch_size * length
        share = estimate.used(section.batch_size)
        memory = training.estimate_memory(
            config, rows=section.batch_size, length=length, mesh=estimate.mesh
        ).total
        return Cost(
            f"pretrain {described(config)} on {tokens:,} tokens",
            tokens * training.flops_per_token(config, length),
            FLOAT32 * config.num_params,
            memory,
            fits(estimate, memory, "embedded.batch_size or tasks.length")
            or idle(estimate, share, section.batch_size, "embedded.batch_size"),
            share=share,
            trained=tokens,
        )

    def summary(self) -> str:
        return f"pretrained, in {self.folder}"


def described(config: models.DecoderConfig) -> str:
    """7,241.73M parameters (mistral)."""
    return f"{config.num_params / 1e6:,.2f}M parameters ({config.architecture})"
