"""AdamW from a config section, with schedules whose length may be a traced number.

Adapters that train side by side end at different steps, so the total number of steps is an argument
of the learning rate and not a constant of the optimizer: the optax chain gives the direction,
`learning_rate(step, total)` its length.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

DEFAULTS = {
    "lr": 2e-5,
    "schedule": "cosine",
    "warmup": 0.01,  # share of the steps
    "weight_decay": 0.0,
    "b1": 0.9,
    "b2": 0.999,
    "eps": 1e-8,
    "clip": 1.0,  # global norm; 0 = never
}

# The share of the peak rate, by the share of the way from the end of the warm-up to the last step.
SCHEDULES: dict[str, Callable[[Array], Array]] = {
    "cosine": lambda x: 0.5 * (1.0 + jnp.cos(jnp.pi * x)),
    "linear": lambda x: 1.0 - x,
    "constant": jnp.ones_like,
}


class Optimizer(NamedTuple):
    """`transform` maps gradients to a direction; the update is -learning_rate(step, total) times
    that direction."""

    transform: optax.GradientTransformation
    learning_rate: Callable[[Int[Array, ""], Int[Array, ""]], Float[Array, ""]]


def decays(path: tuple[Any, ...]) -> bool:
    """Whether weight decay applies to the parameter at `path`: never to norms and biases. By name,
    since under scan over layers a norm's scale is a matrix like any other."""
    names = [str(getattr(part, "key", getattr(part, "name", part))) for part in path]
    return names[-1] not in ("bias", "scale") and not any("norm" in name for name in names)


def make_optimizer(cfg: Mapping[str, Any] | None = None) -> Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) with clipping by global norm before it.

    Args:
      cfg: keys of `DEFAULTS`; a missing key takes its default. `warmup` is the share of all steps
        over which the rate rises linearly from lr/steps to lr.

    Raises:
      ValueError: naming the key that is unknown or out of range.
    """
    given = dict(cfg or {})
    unknown = sorted(set(given) - set(DEFAULTS))
    if unknown:
        raise ValueError(f"optimizer: unknown key {unknown[0]!r}; known: {', '.join(DEFAULTS)}")
    o = DEFAULTS | given
    if o["schedule"] not in SCHEDULES:
        raise ValueError(
            f"optimizer: schedule {o['schedule']!r} is unknown; known: {', '.join(SCHEDULES)}"
        )
    if not 0.0 <= o["warmup"] <= 1.0:
        raise ValueError(f"optimizer: warmup {o['warmup']} is not a share of the steps in [0, 1]")
    for name in ("lr", "weight_decay", "eps", "clip"):
        if o[name] < 0:
            raise ValueError(f"optimizer: {name} is {o[name]}; it must not be negative")
    return _adamw(**o)


@lru_cache(maxsize=64)  # the same settings give the same functions, and these the same program
def _adamw(**o: Any) -> Optimizer:
    shape = SCHEDULES[o["schedule"]]

    def learning_rate(step, total):
        step, total = jnp.asarray(step, jnp.float32), jnp.asarray(total, jnp.float32)
        rise = jnp.ceil(o["warmup"] * total)
        way = jnp.clip((step - rise) / jnp.maximum(total - rise, 1.0), 0.0, 1.0)
        climbing = (step + 1.0) / jnp.maximum(rise, 1.0)
        return o["lr"] * jnp.where(step < rise, climbing, shape(way))

    def mask(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: decays(path), params)

    parts = [
        optax.scale_by_adam(b1=o["b1"], b2=o["b2"], eps=o["eps"]),
        optax.add_decayed_weights(o["weight_decay"], mask=mask),
    ]
    if o["clip"]:
        parts.insert(0, optax.clip_by_global_norm(o["clip"]))
    return Optimizer(optax.chain(*parts), learning_rate)
