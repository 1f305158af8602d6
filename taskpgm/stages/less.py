"""The run of the row `less`: a warm-up, and the influence of training rows along it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from taskpgm import models, tasks, training
from taskpgm.artefact import read_arrays, remove
from taskpgm.mixture import baselines
from taskpgm.models.generate import bucket
from taskpgm.multihost import end_if_asked, on_primary
from taskpgm.progress import Reporter
from taskpgm.stages.context import Context, say, spread
from taskpgm.stages.decoders import trained_axes
from taskpgm.stages.estimate import Cost, Estimate, fits
from taskpgm.stages.matrix_file import save_arrays
from taskpgm.stages.proxy_runs import ProxyRuns, SmallModel, folder_of, proxy_key, title_of

# The paper's settings; but it takes the gradients of all rows.
WARMUP, EPOCHS, DIM, ROWS = 0.05, 4, 8192, 256
OWN = ("warmup", "epochs", "dim", "rows")
BYTES = 2**28  # of gradients that exist at once


@dataclass(frozen=True)
class WarmUp(ProxyRuns):
    """An adapter trained on a random share `warmup` of all packed rows for `epochs` epochs; after
    each, gradients of at most `rows` training examples of each task, and held-out ones of each task
    and target, in `dim` numbers each.

    found.npz: influence [m, k] of each training example on each task and target, the sum over
    epochs of the cosine times the epoch's mean learning rate; task [m], the number of its task.
    """

    def setting(self, name: str, default: Any) -> Any:
        return self.arguments.get(name, default)

    @property
    def epochs(self) -> int:
        return self.setting("epochs", EPOCHS)

    def make(self) -> dict[str, Any]:
        start, context, model = time.monotonic(), self.context, AdaptedModel(self.context)
        rows, batch = self.drawn(model.rows), model.section.batch_size
        each = self.epoch_steps(sum(len(part.tokens) for part in rows), batch)
        steps, seed = each * self.epochs, context.seed_of("less")
        say("proxies", f"{self.title}: {self.epochs} epochs of {each} steps")
        state: Any = model.beginning("less")
        step = training.make_train_step(model.config, model.optimizer, state)
        batches: Any = tasks.stream(rows, batch_size=batch, seed=seed)
        train, judged = (self.encoded(which) for which in ("train", "heldout"))
        size = sum(x.size for x in jax.tree.leaves(state.trainable))
        sketch = training.make_sketch(size, self.setting("dim", DIM), seed)
        rates = np.asarray(model.optimizer.learning_rate(jnp.arange(steps), jnp.int32(steps)))
        total = np.zeros((sum(len(part.ids) for part in train), len(judged)))
        for epoch in range(self.epochs):
            folder = self.folder / f"influence-{epoch}"
            paths = [folder / f"{task.name}.npz" for task in context.tasks]
            missing = [path for path in paths if not on_primary(path.is_file)()]
            if missing:
                state = model.fit(
                    step,
                    state,
                    batches.__getitem__,
                    steps=each * (epoch + 1),
                    totals=steps,
                    directory=self.folder / "run",
                    name=f"{self.title} {epoch + 1}/{self.epochs}",
                    seed=seed,
                )
                features = Features(model, state, sketch)
                targets = np.stack([mean(features.of(part, adam=False)) for part in judged])
                with Reporter("gradients", len(missing), unit="task") as report:
                    for path, part in zip(paths, train, strict=True):
                        if path in missing:
                            found = baselines.influence(features.of(part, adam=True), targets)
                            save_arrays(path, influence=found)
                            report.update(missing.index(path) + 1, path.stem)
                        end_if_asked()
            parts = [on_primary(read_arrays)(path)["influence"] for path in paths]
            total += rates[each * epoch : each * (epoch + 1)].mean() * np.concatenate(parts)
        task = np.repeat(np.arange(len(train)), [len(part.ids) for part in train])
        self.save(influence=total, task=task)
        remove(self.folder / "run" / "checkpoints")
        return {"steps": steps, "seconds": round(time.monotonic() - start, 1)}

    def drawn(self, rows: Sequence[tasks.Rows]) -> list[tasks.Rows]:
        """A random share of all tasks' rows, at least one."""
        sizes = [len(part.tokens) for part in rows]
        rng = np.random.default_rng(self.context.seed_of("less", "rows"))
        picked = np.sort(rng.permutation(sum(sizes))[: self.count(sum(sizes))])
        begins = np.cumsum([0, *sizes])
        chosen = [
            picked[(picked >= low) & (picked < high)] - low
            for low, high in zip(begins, begins[1:], strict=False)
        ]
        return [
            tasks.Rows(*(field[own] for field in part))
            for part, own in zip(rows, chosen, strict=True)
            if len(own)
        ]

    def count(self, rows: int) -> int:
        return max(1, round(self.setting("warmup", WARMUP) * rows))

    def epoch_steps(self, rows: int, batch_size: int) -> int:
        return -(-rows // batch_size)

    def picked(self, which: str) -> list[list[tasks.Example]]:
        """The examples of each task (and target) whose gradients are taken, spread evenly."""
        context, most = self.context, self.setting("rows", ROWS)
        of = context.tasks if which == "train" else context.judged
        splits = [getattr(task, which) for task in of]
        return [[split[i] for i in spread(len(split), most)] for split in splits]

    def encoded(self, which: str) -> list[tasks.Encoded]:
        context = self.context
        tokenizer, length = context.tokenizer(context.proxy), context.config.tasks.length
        return [tasks.encode(tokenizer, examples, length) for examples in self.picked(which)]

    def cost(self, estimate: Estimate) -> Cost:
        context, section = self.context, self.context.config.adapters
        length, batch = context.config.tasks.length, section.batch_size
        config = adapted(estimate.decoder(context.proxy), section)
        each = self.epoch_steps(self.count(sum(estimate.adapter_rows)), batch)
        trained = each * self.epochs * batch * length
        flops, read, count = trained * training.flops_per_token(config, length), 0, 0
        for examples in (*self.picked("train"), *self.picked("heldout")):
            mean = estimate.packed(context.proxy, examples).tokens / len(examples)
            padded = min(length, bucket(round(mean)))
            tokens = self.epochs * len(examples) * padded
            flops += tokens * training.flops_per_token(config, padded)
            read, count = read + tokens, count + len(examples)
        memory = training.estimate_memory(
            config, rows=batch, length=length, mesh=estimate.mesh
        ).total
        size = training.num_adapter_params(config)
        memory += 4 * 4.0 * size * at_once(size, 1, batch)
        return Cost(
            f"{self.title}: {self.epochs} epochs of {each} steps, {trained:,} tokens trained; "
            f"gradients of {count:,} examples after each, {read:,} tokens with padding",
            flops,
            4.0 * size * 3 * 2,
            memory,
            fits(estimate, memory, "adapters.batch_size or adapters.lora.rank"),
            trained=trained,
            scored=read,
        )

    def summary(self) -> str:
        return f"influence along {self.epochs} epochs"


class AdaptedModel(SmallModel):
    """A small model with an adapter, also where the others train all weights."""

    def __init__(self, context: Context):
        super().__init__(context)
        self.config = adapted(self.config, self.section)
        self.axes = trained_axes(self.config)


def adapted(config: models.DecoderConfig, section: Any) -> models.DecoderConfig:
    return replace(config, lora=models.LoraConfig(**section.lora.to_dict()))


class Features:
    """Gradients of single examples at one checkpoint of the warm-up."""

    def __init__(self, model: SmallModel, state: training.TrainState, sketch: training.Sketch):
        settings = {key: model.section.optimizer[key] for key in ("b1", "b2", "eps")}
        self.moments = training.adam_moments(state.opt_state, **settings)
        self.model, self.trainable, self.sketch = model, state.trainable, sketch
        self.size = sum(x.size for x in jax.tree.leaves(state.trainable))

    def of(self, encoded: tasks.Encoded, *, adam: bool) -> Float[np.ndarray, "m d"]:
        """Of each example: the gradient, or the step that Adam would make."""
        model, found = self.model, np.zeros((len(encoded.ids), self.sketch.order.shape[1]))
        length, rows = model.context.config.tasks.length, model.section.batch_size
        for picked, batch in one_each(
            encoded, length, lambda long: at_once(self.size, long, rows * length)
        ):
            made = training.gradient_features(
                model.config,
                self.trainable,
                model.params,
                training.put_batch(batch),
                self.sketch,
                self.moments if adam else None,
            )
            found[picked] = models.to_host(made)[: len(picked)]
        return found


def mean(features: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "d"]:
    """Of the examples; 0 where none fits a row."""
    return features.sum(0) / max(1, len(features))


def at_once(size: int, length: int, tokens: int) -> int:
    """Examples of `length` whose gradients of `size` numbers are taken at once: what has room, and
    no more tokens than a step trains on."""
    return max(1, min(tokens // length, BYTES // (4 * size)))


def one_each(
    encoded: tasks.Encoded, longest: int, size: Any
) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
    """Batches [b t] with one example in a row, of about the same lengths; and which they are. A
    batch that is not full is filled up with empty rows."""
    lengths = [min(longest, bucket(len(ids))) for ids in encoded.ids]
    for length in sorted(set(lengths)):
        own = [i for i, x in enumerate(lengths) if x == length]
        many = size(length)
        for at in range(0, len(own), many):
            picked = own[at : at + many]
            rows = [
                tasks.pack(
                    encoded._replace(ids=[encoded.ids[i]], scored=[encoded.scored[i]]), length
                )
                for i in picked
            ]
            room = ((0, many - len(picked)), (0, 0))
            yield (
                picked,
                {
                    name: np.pad(np.concatenate([getattr(row, name) for row in rows]), room)
                    for name in tasks.Rows._fields
                },
            )


def runs(context: Context, arguments: Mapping[str, Any]) -> WarmUp:
    """The run of a row with these arguments."""
    title = title_of("less", arguments, OWN)
    return WarmUp(folder_of(context, title), proxy_key(context, title), context, title, arguments)
