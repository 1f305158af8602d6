"""Rows with runs of their own: RegMix, DoReMi, Skill-It."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm import training
from taskpgm.mixture import baselines
from taskpgm.models import Decoder, DecoderConfig, init_params
from taskpgm.records import Choosing, from_json
from taskpgm.stages import regmix
from taskpgm.stages.doremi import GroupDRO, beginning, make_dro_step, reweigh, token_losses
from taskpgm.stages.mixture_inputs import RUNS, Inputs
from taskpgm.stages.proxy_runs import sampled
from taskpgm.stages.rows import ROWS
from taskpgm.tasks import Encoded, pack

from .launching import launch

CONFIG = DecoderConfig("llama", 64, 16, 24, 2, 2, 1, 8, 32)
TRIED = ("regmix:runs=3,regressor=ridge", "doremi:steps=4", "skill-it:rounds=2,steps=4")


def rows_of(task: int, count: int):
    rng = np.random.default_rng(task)
    ids = [rng.integers(1, 64, 6).astype(np.int32) for _ in range(count)]
    scored = [np.arange(6) >= 3 for _ in range(count)]
    return pack(Encoded(ids, scored, np.arange(count, dtype=np.int32), 0, 0), 12)


@pytest.fixture(scope="module")
def params():
    return jax.jit(partial(init_params, CONFIG))(jax.random.key(0))


def log_probs(params, batch):
    each = np.asarray(forward(params, batch), np.float64)
    return np.take_along_axis(each, batch["targets"][..., None], -1)[..., 0]


@jax.jit
def forward(params, batch):
    logits = Decoder(CONFIG).apply(
        {"params": params}, batch["tokens"], batch["positions"], batch["segment_ids"]
    )
    return jax.nn.log_softmax(logits)


def test_rows_are_drawn_by_weight_and_know_their_task():
    rows = [rows_of(0, 6), rows_of(1, 3), rows_of(2, 5)]
    batches = sampled(rows, np.array([0.5, 0.0, 1.5]), 16, seed=3)
    seen = np.zeros(3)
    for step in range(200):
        batch = batches(step)
        task = batch["example"].max(1)
        seen += np.bincount(task, minlength=3)
        assert ((batch["example"] == -1) == (batch["segment_ids"] == 0)).all()
        for row, number in zip(batch["tokens"], task, strict=True):
            assert (rows[number].tokens == row).all(1).any()
    np.testing.assert_allclose(seen / seen.sum(), [0.25, 0, 0.75], atol=0.03)
    again = sampled(rows, np.array([0.5, 0.0, 1.5]), 16, seed=3)(7)
    np.testing.assert_array_equal(again["tokens"], batches(7)["tokens"])


def test_the_weights_of_doremi_follow_the_formula(params):
    rows = [rows_of(0, 6), rows_of(1, 3), rows_of(2, 5)]
    other = jax.tree.map(lambda x: x + 0.3 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)
    batch = sampled(rows, np.array([0.5, 0.5, 0.0]), 4, seed=1)(0)
    weights, excess = np.array([0.2, 0.3, 0.5]), np.array([9.0, 9.0, 0.25])
    moved, now, scale = reweigh(
        CONFIG,
        3,
        (0.5, 0.1),
        params,
        (params, other),
        batch,
        jnp.array(weights, jnp.float32),
        jnp.array(excess, jnp.float32),
    )
    scored, task = batch["weights"] > 0, np.maximum(batch["example"], 0)
    expected = baselines.excess_loss(
        -log_probs(other, batch)[scored], -log_probs(params, batch)[scored], task[scored], 3
    )
    assert expected[:2].min() > 0
    expected[2] = 0.25  # absent from the batch: as when it was last seen
    np.testing.assert_allclose(now, expected, rtol=1e-4)
    update = baselines.doremi_update(weights, expected, rate=0.5, smoothing=0.1)
    np.testing.assert_allclose(moved, update, rtol=1e-4)
    count = np.bincount(task[scored], minlength=3)
    each = np.where(count > 0, update / np.maximum(count, 1), 0)[task] * scored
    np.testing.assert_allclose(scale, each * scored.sum() / each.sum(), rtol=1e-4)


def test_token_losses(params):
    batch = sampled([rows_of(0, 6)], np.ones(1), 4, seed=0)(0)
    on_device = {name: jnp.asarray(x) for name, x in batch.items()}
    found = token_losses(CONFIG, {"params": params}, on_device)
    np.testing.assert_allclose(found, -log_probs(params, batch), atol=1e-4)


def test_doremi_averages_the_weights_of_its_steps(params):
    optimizer = training.make_optimizer({"lr": 1e-2})
    state = training.create_state(optimizer, jax.tree.map(jnp.copy, params))
    train = training.make_train_step(CONFIG, optimizer, state)
    step = make_dro_step(CONFIG, train, params, params, 2, rate=2.0)
    batches = sampled([rows_of(0, 6), rows_of(1, 6)], np.ones(2), 4, seed=0)
    dro = GroupDRO(state, *(jnp.asarray(x) for x in beginning(2)))
    seen, excess = [], []
    for k in range(4):
        batch = {name: jnp.asarray(x) for name, x in batches(k).items()}
        dro, metrics = step(dro, None, batch, jax.random.key(0), jnp.int32(4))
        seen.append(metrics["weights"])
        excess.append(metrics["excess"])
    assert excess[0].max() == 0  # the proxy is the reference before its first step
    assert np.max(excess[1:]) > 0
    np.testing.assert_allclose(dro.total / 4, np.mean(seen, 0), rtol=1e-6)
    np.testing.assert_allclose(dro.total / 4, baselines.doremi(excess, rate=2.0), rtol=1e-5)


def test_units_of_regmix_can_be_families():
    sizes = np.array([16, 9, 4])
    members = regmix.units(["a", "b", "a"], sizes)
    np.testing.assert_allclose(members, [[4 / 6, 0, 2 / 6], [0, 1, 0]])
    prior = regmix.natural_prior(members, sizes)
    np.testing.assert_allclose(prior, np.sqrt([20, 9]) / np.sqrt([20, 9]).sum())
    np.testing.assert_array_equal(regmix.units(["a1", "b1", "a2"], sizes), np.eye(3))
    # Family a is the better, so the mixture is made of its tasks as it mixes them.
    mixtures = baselines.dirichlet_mixtures(prior, 30)
    losses = np.repeat(1 - mixtures[:, :1], 3, 1)
    found = {"mixtures": mixtures, "losses": losses, "prior": prior, "members": members}
    inputs = Inputs(
        ["a1", "b1", "a2"],
        ["a", "b", "a"],
        {},
        {},
        None,
        None,
        {"importance": "tasks"},
        0,
        arguments={"units": "families", "regressor": "ridge", "simulated": 2000},
        evidence={RUNS: lambda: found},
    )
    weights = np.asarray(ROWS["regmix"].make(inputs))
    assert weights.shape == (3,) and abs(weights.sum() - 1) < 1e-9 and weights[1] < 0.2
    np.testing.assert_allclose(weights[0], 2 * weights[2])


@pytest.mark.pipeline
def test_every_budget_of_a_sweep_has_runs_of_its_own(begun, tasks_folder):
    workdir = begun
    options = (
        f"--config.tasks.source={tasks_folder}",
        "--config.compare=('doremi','regmix:runs=2,regressor=ridge,units=families')",
        "--config.train.steps=0",
        "--config.train.seeds=1",
    )
    launch(workdir, *options, "--stage=runs")
    folders = lambda: {path.name for path in (workdir / "proxies").iterdir()}  # noqa: E731
    assert folders() == {"doremi", "regmix:runs=2,units=families"}
    before = (workdir / "proxies" / "doremi" / "done.json").read_bytes()
    said = launch(workdir, *options, "--config.sweep.budget=(24,40)", "--stage=mixture").stdout
    assert "doremi@budget=40: a reference and a proxy of " in said and "doremi: done" in said
    assert folders() == {"doremi", "doremi@budget=40", "regmix:runs=2,units=families"}
    assert (workdir / "proxies" / "doremi" / "done.json").read_bytes() == before
    weights = json.loads((workdir / "mixture" / "weights.json").read_text())["mixtures"]
    assert weights["doremi"]["weights"] != weights["doremi@budget=40"]["weights"]
    choosing = json.loads((workdir / "mixture" / "choosing.json").read_text())
    assert choosing["rows"]["doremi@budget=40"]["parts"] == ["doremi@budget=40"]
    # Another budget without a sweep replaces nothing either.
    launch(workdir, *options, "--config.mixture.budget=40", "--stage=mixture")
    assert (workdir / "proxies" / "doremi" / "done.json").read_bytes() == before


@pytest.mark.pipeline
def test_rows_with_runs_from_a_config(begun, tasks_folder):
    workdir = begun
    options = (
        f"--config.tasks.source={tasks_folder}",
        f"--config.compare={TRIED}",
        "--stage=mixture",
    )
    launch(workdir, *options)
    weights = (workdir / "mixture" / "weights.json").read_bytes()
    for name in TRIED:
        mixture = json.loads(weights)["mixtures"][name]
        assert abs(sum(mixture["weights"]) - 1) < 1e-9 and sum(mixture["counts"]) == 24
    found = from_json(Choosing, json.loads((workdir / "mixture" / "choosing.json").read_text()))
    # Rows of 2 times 48 tokens a step: 3 runs of 3 or 4 steps, two of 4 steps, one of 4.
    assert found.parts["regmix:runs=3"].trained in (3 * 3 * 96, 3 * 4 * 96)
    assert found.parts["doremi:steps=4"].trained == 2 * 4 * 96
    own = found.parts["skill-it:rounds=2,steps=4"]
    assert own.trained == 4 * 96 and own.seconds > 0
    # Who helps whom is told by the models of single tasks: Skill-It pays for them as well.
    paid = found.rows["skill-it:rounds=2,steps=4"]
    assert paid.parts[:2] == ["adapters", "scores"]
    assert paid.total.trained == own.trained + found.parts["adapters"].trained
    told = np.load(workdir / "proxies" / "skill-it:rounds=2,steps=4" / "found.npz")
    assert told["weights"].shape == (2, 4)
    # Interrupted, they go on from what they have, to the same bits.
    for folder in ("regmix:runs=3", "doremi:steps=4", "skill-it:rounds=2,steps=4"):
        (workdir / "proxies" / folder / "done.json").unlink()
    (workdir / "proxies" / "regmix:runs=3" / "losses-2.npz").unlink()
    (workdir / "mixture" / "done.json").unlink()
    launch(workdir, *options)
    assert (workdir / "mixture" / "weights.json").read_bytes() == weights
