"""LESS against a direct reimplementation, and from a config."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm import tasks, training
from taskpgm.mixture import baselines
from taskpgm.models import Decoder, DecoderConfig, LoraConfig, init_lora, init_params
from taskpgm.records import Choosing, from_json
from taskpgm.stages.less import at_once, one_each
from taskpgm.tasks import Encoded, pack

from .launching import launch
from .test_targets import write_target

LORA = LoraConfig(rank=2, alpha=4.0, dropout=0.5, targets=("q_proj", "down_proj"))
CONFIG = DecoderConfig("llama", 64, 16, 24, 2, 2, 1, 8, 32, lora=LORA)
ADAM = {"b1": 0.8, "b2": 0.95, "eps": 1e-4}


def examples(seed: int, count: int, lengths: tuple[int, ...] = (4, 11)) -> Encoded:
    """Of so many tokens, the last two of which are scored."""
    rng = np.random.default_rng(seed)
    sizes = [lengths[i % len(lengths)] for i in range(count)]
    ids = [rng.integers(1, 64, size).astype(np.int32) for size in sizes]
    scored = [np.arange(len(x)) >= len(x) - 2 for x in ids]
    return Encoded(ids, scored, np.arange(count, dtype=np.int32), 0, 0)


def gradient(params, lora, ids, scored) -> np.ndarray:
    """Of the mean loss of one example's scored tokens, all logits at once; [p]."""

    return flat(slope(lora, params, ids, scored))


@jax.jit
@jax.grad
def slope(lora, params, ids, scored):
    plain = replace(CONFIG, lora=replace(LORA, dropout=0.0))
    logits: Any = Decoder(plain).apply({"params": params, "lora": lora}, ids[None])
    each = jax.nn.log_softmax(logits[0])[jnp.arange(len(ids) - 1), ids[1:]]
    return -(each * scored[1:]).sum() / scored[1:].sum()


def flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def warm_up(params):
    """States after 3 and after 6 steps, and the learning rates of all steps."""
    optimizer = training.make_optimizer({"lr": 2e-2, "warmup": 0.3, **ADAM})
    state = training.create_state(optimizer, init_lora(CONFIG, jax.random.key(1)))
    step = training.make_train_step(CONFIG, optimizer, state)
    data: Any = tasks.stream([pack(examples(9, 12), 32)], batch_size=2, seed=0)
    found = []
    for k in range(6):
        batch = {name: jnp.asarray(x) for name, x in data[k].items()}
        state, _ = step(state, params, batch, jax.random.key(0), jnp.int32(6))
        if k in (2, 5):
            found.append(jax.tree.map(jnp.copy, state))
    return found, np.asarray(optimizer.learning_rate(jnp.arange(6), jnp.int32(6)))


def features(params, state, part, sketch, adam):
    moments = training.adam_moments(state.opt_state, **ADAM) if adam else None
    found = np.zeros((len(part.ids), sketch.order.shape[1]))
    for picked, batch in one_each(part, 32, lambda long: 3):
        made = training.gradient_features(CONFIG, state.trainable, params, batch, sketch, moments)
        found[picked] = np.asarray(made)[: len(picked)]
    return found


@pytest.mark.parametrize("dim", [50, 10**6])
def test_influence_is_that_of_a_direct_reimplementation(dim):
    params = jax.jit(partial(init_params, CONFIG))(jax.random.key(0))
    states, rates = warm_up(params)
    trained, targets = examples(0, 10), [examples(1, 4), examples(2, 3)]
    size = len(flat(states[0].trainable))
    sketch = training.make_sketch(size, dim, seed=5)
    ours, theirs = 0.0, np.zeros((10, 2))
    for epoch, state in enumerate(states):
        rows = features(params, state, trained, sketch, adam=True)
        means = [features(params, state, part, sketch, adam=False).mean(0) for part in targets]
        rate = rates[3 * epoch : 3 * epoch + 3].mean()
        ours += rate * baselines.influence(rows, means)

        # The same from the formulas: m and v of the checkpoint, one example at a time.
        adam = state.opt_state[1]
        m, v, t = flat(adam.mu), flat(adam.nu), 3 * (epoch + 1) + 1
        b1, b2, eps = ADAM.values()

        def project(x):
            out = np.zeros(sketch.order.shape[1])
            for entries, signs in zip(sketch.order, sketch.sign, strict=True):
                for at, (entry, sign) in enumerate(zip(entries, signs, strict=True)):
                    out[at] += sign * x[entry] if entry < size else 0.0
            return out

        sgd = []
        for part in targets:
            pairs = zip(part.ids, part.scored, strict=True)
            own = [project(gradient(params, state.trainable, *pair)) for pair in pairs]
            sgd.append(np.mean(own, 0))
        for i, (ids, scored) in enumerate(zip(trained.ids, trained.scored, strict=True)):
            g = gradient(params, state.trainable, ids, scored)
            first = (b1 * m + (1 - b1) * g) / (1 - b1**t)
            second = (b2 * v + (1 - b2) * g**2) / (1 - b2**t)
            step = project(first / np.sqrt(second + eps))
            for j, target in enumerate(sgd):
                cosine = step @ target / np.linalg.norm(step) / np.linalg.norm(target)
                theirs[i, j] += rate * cosine
    assert np.abs(theirs).max() > 1e-4 and np.ptp(theirs) > 1e-4
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


def test_a_sketch_keeps_inner_products():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 300))
    y += x
    found = []
    for seed in range(400):
        order, sign = training.make_sketch(300, 64, seed)
        assert sorted(order.ravel()) == list(range(320)) and set(sign.ravel()) == {-1.0, 1.0}
        a, b = ((np.pad(each, (0, 20))[order] * sign).sum(0) for each in (x, y))
        found.append(a @ b)
    assert abs(np.mean(found) - x @ y) < 4 * np.std(found) / 20
    assert np.std(found) < np.sqrt(2 / 64) * np.linalg.norm(x) * np.linalg.norm(y)


def test_weights_are_shares_of_the_selected_examples():
    rng = np.random.default_rng(3)
    task, examples = np.repeat([0, 1, 2], [4, 5, 2]), np.array([4, 20, 6])
    influences = rng.normal(size=(11, 3))
    # Every example on its own: those of a task share its rows' scores.
    every = [(influences[i].max(), t, examples[t] / (task == t).sum()) for i, t in enumerate(task)]
    for top in (0.05, 0.3, 1.0):
        left, weights = top * 30, np.zeros(3)
        for _, t, count in sorted(every, reverse=True):
            weights[t] += min(count, left)
            left -= min(count, left)
        found = baselines.less(influences, task, examples, top=top)
        np.testing.assert_allclose(found, weights / weights.sum(), atol=1e-12)
    np.testing.assert_allclose(baselines.less(influences, task, examples, top=1), examples / 30)
    for bad in ({"top": 0}, {"top": 2}):
        with pytest.raises(ValueError, match="top="):
            baselines.less(influences, task, examples, **bad)
    with pytest.raises(ValueError, match="have shape"):
        baselines.less(influences, task[1:], examples)


def test_examples_of_like_lengths_share_a_batch():
    part = examples(4, 9, (4, 11, 18))
    seen = []
    for picked, batch in one_each(part, 20, lambda long: at_once(10, long, 40)):
        length = batch["tokens"].shape[1]
        assert len(batch["tokens"]) == max(1, 40 // length) >= len(picked)
        for row, i in enumerate(picked):
            assert (batch["tokens"][row, : len(part.ids[i])] == part.ids[i]).all()
            assert batch["weights"][row].sum() == 2
        assert (batch["weights"][len(picked) :] == 0).all()
        seen += picked
    assert sorted(seen) == list(range(9))


@pytest.mark.pipeline
def test_less_from_a_config(begun, tasks_folder, tmp_path):
    targets = tmp_path / "targets"
    write_target(targets, "count", "")
    workdir, name = begun, "less:rows=4,epochs=2,top=0.2,dim=64"
    options = (
        f"--config.tasks.source={tasks_folder}",
        f"--config.compare=('{name}',)",
        "--stage=mixture",
        f"--config.tasks.targets={targets}",
    )
    assert "less:epochs=2,dim=64,rows=4" in launch(workdir, *options, "--dry_run").stdout
    launch(workdir, *options)
    weights = (workdir / "mixture" / "weights.json").read_bytes()
    told = json.loads(weights)
    mixture = told["mixtures"][name]
    assert abs(sum(mixture["weights"]) - 1) < 1e-9 and sum(mixture["counts"]) == 24
    folder = workdir / "proxies" / "less:epochs=2,dim=64,rows=4"
    found = np.load(folder / "found.npz")
    assert (
        found["influence"].shape == (16, 5)
        and list(found["task"]) == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    )
    # The one target alone decides.
    expected = baselines.less(found["influence"][:, 4:], found["task"], told["sizes"], top=0.2)
    np.testing.assert_allclose(mixture["weights"], expected)
    cost = from_json(Choosing, json.loads((workdir / "mixture" / "choosing.json").read_text()))
    (part,) = cost.rows[name].parts
    assert cost.parts[part].trained == 2 * 96 and cost.parts[part].scored > 0
    assert (cost.parts[part].seconds or 0) > 0
    # Interrupted, it goes on from what it has, to the same bits; what is whole is not made again.
    kept = folder / "influence-0" / "upper.npz"
    before = kept.stat().st_mtime_ns
    for path in ("done.json", "found.npz", "influence-1/shout.npz"):
        (folder / path).unlink()
    (workdir / "mixture" / "done.json").unlink()
    launch(workdir, *options)
    assert (workdir / "mixture" / "weights.json").read_bytes() == weights
    assert kept.stat().st_mtime_ns == before
