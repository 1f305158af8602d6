"""The runs of the row `doremi`: a reference on uniform weights, then a proxy by group DRO."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from taskpgm import models, training
from taskpgm.artefact import remove
from taskpgm.stages.context import Context, say
from taskpgm.stages.estimate import Cost, Estimate
from taskpgm.stages.proxy_runs import (
    ProxyRuns,
    SmallModel,
    budget_settings,
    budget_steps,
    folder_of,
    proxy_key,
    title_of,
)

OWN = ("steps", "rate", "smoothing")
POSITIONS = 64  # of a row whose logits exist at once


@flax.struct.dataclass
class GroupDRO:
    """A proxy in training, and its task weights."""

    train: training.TrainState
    weights: Float[Array, "n"]
    total: Float[Array, "n"]  # of the weights of all steps
    excess: Float[Array, "n"]  # of each task, when it was last seen; nats per token


@dataclass(frozen=True)
class ReferenceAndProxy(ProxyRuns):
    """found.npz: weights [n], the mean over all steps of the proxy."""

    def make(self) -> dict[str, Any]:
        start, context = time.monotonic(), self.context
        model, n = SmallModel(context), len(context.tasks)
        steps = self.arguments.get("steps") or budget_steps(context)
        say("proxies", f"{self.title}: a reference and a proxy of {steps} steps each")
        uniform = np.full(n, 1 / n)
        first = self.fresh(model)
        train = training.make_train_step(model.config, model.optimizer, first)
        reference = self.fit(model, train, first, uniform, steps, "reference").trainable
        state = self.fresh(model)
        everywhere = NamedSharding(context.mesh, PartitionSpec())
        vectors = [training.place(x, everywhere) for x in beginning(n)]
        settings = {k: self.arguments[k] for k in ("rate", "smoothing") if k in self.arguments}
        step = make_dro_step(model.config, train, reference, model.params, n, **settings)
        state = self.fit(model, step, GroupDRO(state, *vectors), uniform, steps, "proxy")
        self.save(weights=np.asarray(models.to_host(state.total), np.float64) / steps)
        for name in ("reference", "proxy"):
            remove(self.folder / name / "checkpoints")
        return {"steps": steps, "seconds": round(time.monotonic() - start, 1)}

    def fresh(self, model: SmallModel) -> training.TrainState:
        """The proxy before its first step."""
        key = jax.random.key(self.context.seed_of("doremi"))
        lora = model.config.lora
        # The params are also where the other of the two models starts.
        first = (
            models.init_lora(model.config, key) if lora else jax.tree.map(jnp.copy, model.params)
        )
        return training.create_state(model.optimizer, first, axes=model.axes)

    def fit(
        self, model: SmallModel, step: Any, state: Any, weights: Any, steps: int, name: str
    ) -> Any:
        """Trains one of the two models, or goes on where it stopped."""
        return training.fit(
            step,
            state,
            model.batches(weights, "doremi", name),
            frozen=model.params if model.config.lora else None,
            steps=steps,
            directory=self.folder / name,
            name=f"{self.title} {name}",
            seed=self.context.seed_of("doremi"),
            checkpoint_every=model.section.checkpoint_every,
            log_every=self.context.config.log_every,
        )

    def cost(self, estimate: Estimate) -> Cost:
        context = self.context
        steps = self.arguments.get("steps") or budget_steps(context, estimate.tokens_per_example)
        tokens = steps * context.config.adapters.batch_size * context.config.tasks.length
        what = f"a reference and a proxy of {steps} steps each"
        # Before each of the proxy's steps both models read its batch.
        return self.small_cost(estimate, what, trained=2 * tokens, read=2 * tokens)

    def summary(self) -> str:
        return "a reference and a proxy"


def beginning(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """weights, total and excess before the first step."""
    return np.full(n, 1 / n, np.float32), np.zeros(n, np.float32), np.zeros(n, np.float32)


def make_dro_step(
    config: models.DecoderConfig,
    train: Callable,
    reference: Any,
    params: Any,
    n: int,
    *,
    rate: float = 1.0,
    smoothing: float = 1e-3,
) -> Callable:
    """The step of Xie et al. (2023), algorithm 1, on states of `GroupDRO`: weights move by the
    proxy's excess loss over the reference, then the proxy is trained on the loss that they weigh.

    Where a batch has none of a task, its last excess counts, as in the authors' code. A batch's
    `example` holds the task of each position. The metrics also have `excess` and `weights` [n].
    """

    def step(state: GroupDRO, frozen: Any, batch: Any, key: Any, total: Any) -> Any:
        trained = (reference, state.train.trainable)
        weights, excess, scale = reweigh(
            config, n, (rate, smoothing), params, trained, batch, state.weights, state.excess
        )
        inner, metrics = train(state.train, frozen, {**batch, "weights": scale}, key, total)
        state = GroupDRO(inner, weights, state.total + weights, excess)
        return state, {**metrics, "excess": excess, "weights": weights}

    return step


@partial(jax.jit, static_argnums=(0, 1, 2))
def reweigh(
    config: models.DecoderConfig,
    n: int,
    settings: tuple[float, float],
    params: Any,
    trained: tuple[Any, Any],
    batch: Mapping[str, Array],
    weights: Float[Array, "n"],
    excess: Float[Array, "n"],
) -> tuple[Float[Array, "n"], Float[Array, "n"], Float[Array, "b t"]]:
    """The next task weights, the excess losses they follow from, and what each token of the batch
    counts: w_i over the tokens of task i, scaled so that the batch's sum stays its tokens."""
    rate, smoothing = settings
    scored = (batch["weights"] > 0).astype(jnp.float32)
    reference, proxy = (
        token_losses(config, models.trained_variables(config, each, params), batch)
        for each in trained
    )
    task = jnp.maximum(batch["example"], 0).reshape(-1)
    sums = partial(jax.ops.segment_sum, segment_ids=task, num_segments=n)
    count = sums(scored.reshape(-1))
    over = sums((jnp.maximum(proxy - reference, 0.0) * scored).reshape(-1))
    excess = jnp.where(count > 0, over / jnp.maximum(count, 1.0), excess)
    moved = jax.nn.softmax(jnp.log(weights) + rate * excess)
    weights = (1 - smoothing) * moved + smoothing / n
    each = jnp.where(count > 0, weights / jnp.maximum(count, 1.0), 0.0)
    scale = each[task].reshape(scored.shape) * scored
    return weights, excess, scale * (scored.sum() / jnp.maximum(scale.sum(), 1e-30))


def token_losses(
    config: models.DecoderConfig, variables: Any, batch: Mapping[str, Array]
) -> Float[Array, "b t"]:
    """-log p of each position's target, nats; logits exist for POSITIONS of a row at a time."""
    hidden: Any = models.Decoder(config).apply(
        variables, batch["tokens"], batch["positions"], batch["segment_ids"], method="hidden"
    )
    matrix = models.unembedding(config, variables["params"]).astype(hidden.dtype)
    rows, length, width = hidden.shape
    size = next(k for k in range(min(POSITIONS, length), 0, -1) if length % k == 0)

    def some(part: tuple[Array, Array]) -> Array:
        logits = jnp.matmul(part[0], matrix, preferred_element_type=jnp.float32)
        picked = jnp.take_along_axis(logits, part[1][..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits, axis=-1) - picked

    parts = (
        hidden.reshape(rows, length // size, size, width).swapaxes(0, 1),
        batch["targets"].reshape(rows, length // size, size).swapaxes(0, 1),
    )
    return jax.lax.map(some, parts).swapaxes(0, 1).reshape(rows, length)


def runs(context: Context, arguments: Mapping[str, Any]) -> ReferenceAndProxy:
    """The runs of a row with these arguments."""
    title = title_of("doremi", arguments, OWN)
    key = proxy_key(context, title, budget_settings(context, arguments))
    return ReferenceAndProxy(folder_of(context, title), key, context, title, arguments)
