"""Schedules with a traced length; clipping and decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from taskpgm.models import LoraConfig
from taskpgm.stages import default_config
from taskpgm.training.optimizer import DEFAULTS, make_optimizer


@pytest.mark.parametrize(
    "schedule,reference",
    [
        ("cosine", lambda n, w: optax.cosine_decay_schedule(1.0, n - w)),
        ("linear", lambda n, w: optax.linear_schedule(1.0, 0.0, n - w)),
        ("constant", lambda n, w: optax.constant_schedule(1.0)),
    ],
)
def test_schedules(schedule, reference):
    rate = make_optimizer({"lr": 3e-4, "schedule": schedule, "warmup": 0.1}).learning_rate
    totals = jnp.array([40, 100])
    steps = jnp.arange(100)
    got = jax.jit(jax.vmap(jax.vmap(rate, (0, None)), (None, 0)))(steps, totals)
    for row, total in zip(got, totals, strict=True):
        warm = int(total) // 10
        after = reference(int(total), warm)
        want = [(k + 1) / warm if k < warm else float(after(k - warm)) for k in range(100)]
        np.testing.assert_allclose(row, 3e-4 * np.array(want), rtol=1e-5, atol=1e-9)


def test_no_warmup_starts_at_the_peak():
    assert make_optimizer({"lr": 0.5, "warmup": 0.0}).learning_rate(0, 10) == 0.5


def test_decay_spares_norms_and_biases():
    params = {
        "layers": {
            "attention": {"q_proj": {"kernel": jnp.ones((2, 3, 3)), "bias": jnp.ones((2, 3))}},
            "attention_norm": {"scale": jnp.ones((2, 3)), "bias": jnp.ones((2, 3))},
        },
        "embedding": jnp.ones((5, 3)),
        "final_norm": {"scale": jnp.ones(3)},
    }
    transform = make_optimizer({"weight_decay": 0.5}).transform
    zeros = jax.tree.map(jnp.zeros_like, params)
    direction, _ = jax.jit(transform.update)(zeros, jax.jit(transform.init)(params), params)
    moved = {jax.tree_util.keystr(k) for k, x in jax.tree.leaves_with_path(direction) if x.any()}
    assert moved == {"['layers']['attention']['q_proj']['kernel']", "['embedding']"}


def test_clipping_is_by_global_norm_of_each_task():
    transform = make_optimizer({"clip": 1.0, "weight_decay": 0.0, "b1": 0.0}).transform
    params = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((2, 2))}
    gradient = {"a": jnp.array([[3.0, 0, 0], [0.3, 0, 0]]), "b": jnp.array([[4.0, 0], [0.4, 0]])}
    state = jax.jit(jax.vmap(transform.init))(params)
    _, state = jax.jit(jax.vmap(transform.update))(gradient, state, params)
    adam = [x for x in state if hasattr(x, "mu")][0]
    np.testing.assert_allclose(adam.mu["a"][:, 0], [0.6, 0.3], rtol=1e-6)
    np.testing.assert_allclose(adam.mu["b"][:, 0], [0.8, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    "wrong,words",
    [
        ({"learning_rate": 1}, "unknown key 'learning_rate'"),
        ({"schedule": "cosin"}, "schedule 'cosin' is unknown; known: cosine, linear, constant"),
        ({"warmup": 1.5}, "warmup 1.5"),
        ({"lr": -1.0}, "lr is -1.0"),
    ],
)
def test_bad_settings_are_named(wrong, words):
    with pytest.raises(ValueError, match=words):
        make_optimizer(wrong)


def test_defaults_are_the_published_recipe():
    assert (DEFAULTS["lr"], DEFAULTS["schedule"], DEFAULTS["warmup"]) == (2e-5, "cosine", 0.01)
    config = default_config()
    for section in (config.adapters.optimizer, config.train.optimizer):
        assert DEFAULTS == section.to_dict() | {"lr": DEFAULTS["lr"]}
    assert DEFAULTS["lr"] == config.train.optimizer.lr
    assert LoraConfig() == LoraConfig(**config.adapters.lora.to_dict())
