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
from taskpgm.models.scoring import one_model_forward, target_log_probs
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
        first = model.beginning("doremi")
        train = training.make_train_step(model.config, model.optimizer, first)

        def fit(step: Callable, state: Any, name: str) -> Any:
            return model.fit(
                step,
                state,
                model.batches(uniform, "doremi", name),
                steps=steps,
                directory=self.folder / name,
                name=f"{self.title} {name}",
                seed=context.seed_of("doremi"),
            )

        reference = fit(train, first, "reference").trainable
        state = model.beginning("doremi")
        everywhere = NamedSharding(context.mesh, PartitionSpec())
        vectors = [training.place(x, everywhere) for x in beginning(n)]
        settings = {k: self.arguments[k] for k in ("rate", "smoothing") if k in self.arguments}
        step = make_dro_step(model.config, train, reference, model.params, n, **settings)
        state = fit(step, GroupDRO(state, *vectors), "proxy")
        self.save(weights=np.asarray(models.to_host(state.total), np.float64) / steps)
        for name in ("reference", "proxy"):
            remove(self.folder / name / "checkpoints")
        return {"steps": steps, "seconds": round(time.monotonic() - start, 1)}

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
    forward = one_model_forward(config)
    places = (batch[name] for name in ("tokens", "positions", "segment_ids"))
    hidden, head = forward.hidden(variables, None, *places), forward.head(variables, None)
    length = hidden.shape[1]
    size = next(k for k in range(min(POSITIONS, length), 0, -1) if length % k == 0)

    # Row by row, so that devices that share the rows each unembed their own.
    def one(states: Float[Array, "t d"], targets: Array) -> Float[Array, "t"]:
        return -target_log_probs(states[None], head, targets, jnp.int32(length), size)[0][0]

    return jax.vmap(one)(hidden, batch["targets"])


def runs(context: Context, arguments: Mapping[str, Any]) -> ReferenceAndProxy:
    """The runs of a row with these arguments."""
    title = title_of("doremi", arguments, OWN)
    settings = budget_settings(context, arguments)
    key = proxy_key(context, title, list(settings.values()))
    return ReferenceAndProxy(folder_of(context, title), key, context, title, arguments, settings)
