"""Likelihoods and divergences: the same whatever the blocks, and within the stated bytes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.affinity import jsd, pairwise
from taskpgm.affinity.layout import (
    Layout,
    blocks_read,
    layout,
    passes,
    plan,
    positions_read,
    rows_at_a_time,
)
from taskpgm.affinity.pairwise import ScoredModels, score_pairs
from taskpgm.models import DecoderConfig, LoraConfig


def run(world, task, new, old, cut, **options):
    examples, _, rows = world.tasks[task]

    def models_of(indices):
        assert len(indices) <= cut.group
        return jax.tree.map(lambda x: x[np.asarray(indices)], world.models)

    models = ScoredModels(world.forward, world.shared, models_of)
    return score_pairs(models, new, old, rows, len(examples), cut, **options)


def alone(world, task, names):
    """(log-likelihoods [n m], divergences [m n n]) of one model and one example at a time."""
    examples, prompts, _ = world.tasks[task]
    pairs = list(zip(examples, prompts, strict=True))
    likelihood = [[world.log_likelihood_alone(i, *e) for e in pairs] for i in names]
    jsd = [[[world.divergence_alone(i, j, *e) for j in names] for i in names] for e in pairs]
    return np.array(likelihood), np.array(jsd)


CUTS = {
    "all at once": Layout(2, 5, 5, 48, 48, 64),
    "few positions": Layout(2, 5, 5, 6, 3, 64),
    "blocks of models": Layout(2, 2, 2, 12, 4, 64),
    "one model at a time": Layout(1, 1, 1, 10, 5, 64),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_blocks_change_nothing(world, cut):
    likelihood, apart = alone(world, 0, range(5))
    values, divergence = run(world, 0, range(5), [], cut)
    np.testing.assert_allclose(values, likelihood, rtol=2e-6)
    np.testing.assert_allclose(divergence, apart, rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("models", [5, 1])
def test_only_the_pairs_asked_for(world, models):
    names = [4, 1, 0, 3]
    likelihood, apart = alone(world, 2, names)
    cut = Layout(2, 2, models, 12, 4, 64)
    values, divergence = run(world, 2, names[:2], names[2:], cut)
    np.testing.assert_allclose(values, likelihood, rtol=2e-6)
    assert np.isnan(divergence[:, 2, 3]).all() and np.isnan(divergence[:, 3, 2]).all()
    asked = np.isfinite(divergence)
    np.testing.assert_allclose(divergence[asked], apart[asked], rtol=2e-5, atol=1e-12)
    assert asked.sum() == 5 * (16 - 2)


def test_bins_keep_the_mean_of_the_task(world):
    _, whole = run(world, 0, range(5), [], CUTS["all at once"])
    _, got = run(world, 0, range(5), [], CUTS["all at once"]._replace(bins=3))
    count = pairwise.bins(7, 3).count
    assert count.tolist() == [3, 2, 2] and got.shape == (3, 5, 5)
    mean = np.average(got, axis=0, weights=count)
    np.testing.assert_allclose(mean, whole.mean(0), rtol=1e-6)


def test_top_k_is_a_lower_bound_that_rises_to_the_divergence(world):
    _, whole = run(world, 0, range(5), [], CUTS["few positions"])
    (_, few), (_, many) = (
        run(world, 0, range(5), [], CUTS["few positions"], top_k=k) for k in (2, 37)
    )
    _, apart = run(world, 0, range(5), [], CUTS["blocks of models"], top_k=2)
    for got in (few, apart):
        assert (got <= whole + 1e-6).all() and got.mean() < 0.95 * whole.mean()
    np.testing.assert_allclose(many, whole, rtol=1e-4, atol=1e-7)


def test_one_program_for_all_tasks(world):
    pairwise.reduce_window.clear_cache()
    for task in range(3):
        run(world, task, range(5), [], CUTS["few positions"])
    assert pairwise.reduce_window._cache_size() == 1


CONFIG = DecoderConfig.from_hf(
    {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
    }
)
CONFIG = dataclasses.replace(CONFIG, lora=LoraConfig())  # its unembedding is the base's


@pytest.mark.parametrize("memory", [8.0 * 2**20, 300.0 * 2**20, 8.0 * 2**30])
def test_316_tasks_fit(memory):
    """The memory of a compiled step, hidden states and distributions, is at most what is stated."""
    cut = layout(316, CONFIG, length=512, batch_size=8, memory=memory)
    assert cut.scored_per_window % cut.positions_per_chunk == 0 and cut.scored_per_window <= 8 * 512
    models, two = cut.models_per_block, cut.models_per_block < 316
    hidden = jax.ShapeDtypeStruct((models, cut.scored_per_window, CONFIG.hidden_size), jnp.float32)
    head = jax.ShapeDtypeStruct((CONFIG.hidden_size, CONFIG.vocab_size), jnp.float32)
    whole = [jax.ShapeDtypeStruct((cut.scored_per_window,), jnp.int32)] * 3
    rows = [jax.ShapeDtypeStruct((8, 512), jnp.int32)] * 3
    window = pairwise.TargetWindow(*rows, *whole, jax.ShapeDtypeStruct((), jnp.int32))
    lowered = pairwise.reduce_window.lower(
        pairwise.Block(hidden, head),
        pairwise.Block(hidden, head) if two else None,
        window,
        whole[0],
        jax.ShapeDtypeStruct((cut.scored_per_window,), jnp.float32),
        num_bins=cut.bins,
        chunk=cut.positions_per_chunk,
        top_k=None,
        pairwise=jsd.pairwise,
    )
    use = lowered.compile().memory_analysis()
    weights = np.prod(head.shape) * 4
    held = use.temp_size_in_bytes + use.output_size_in_bytes + use.argument_size_in_bytes
    assert held - (2 if two else 1) * weights <= 1.05 * memory


@pytest.mark.parametrize("scored", [150, 512])
def test_few_bytes_do_not_mean_many_passes(scored):
    """Of all block sizes that fit, the one with the fewest passes over the rows is chosen."""
    pool, pair = (
        layout(
            316, CONFIG, length=512, batch_size=8, memory=300.0 * 2**20, scored=scored, contexts=c
        )
        for c in ("pool", "pair")
    )
    assert passes(pool, 316, scored, "pool") < 20 and passes(pair, 316, scored, "pair") == 1
    # A batch of rows is not cut into windows as long as one row is not.
    much = layout(316, CONFIG, length=512, batch_size=8, memory=8.0 * 2**30, scored=scored)
    assert much.batch_size * scored <= much.scored_per_window and much.models_per_block == 316


@pytest.fixture
def seen(monkeypatch):
    """How many models each call for hidden states has read."""
    real, sizes = pairwise.hidden_states, []
    monkeypatch.setattr(
        pairwise,
        "hidden_states",
        lambda forward, shared, models, window: (
            sizes.append(len(models["a"])) or real(forward, shared, models, window)
        ),
    )
    return sizes


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_models_read_as_often_as_planned(world, cut, seen):
    rows = world.tasks[0][2]
    scored = (rows.weights > 0).sum(1)
    run(world, 0, range(5), [], cut)
    blocks = -(-5 // cut.models_per_block)
    held = (
        -(-cut.models_per_block // cut.group) * min(cut.group, cut.models_per_block) * blocks
    )  # with fillers
    parts = [
        max(1, -(-scored[at : at + cut.batch_size].sum() // cut.scored_per_window))
        for at in range(0, len(scored), cut.batch_size)
    ]
    assert sum(seen) == held * (blocks + 1) / 2 * sum(parts)


def test_plan_shows_its_arithmetic():
    held = [(100,) * 10] * 316
    sizes = {"num_models": 316, "length": 512, "batch_size": 8, "memory": 8.0 * 2**30}
    got = plan(CONFIG, held, **sizes, heldout_examples=316 * 50)
    assert got.layout.models_per_block == 316 and got.memory <= 8.0 * 2**30
    assert got.other_flops == 25 * 49770 * 32000 * 316 * 1000
    assert got.disk == pytest.approx(316 * 50 * (49770 * 4 + 316 * 8))
    for part in ("316 x 316", "49,770 pairs (pool)", "316 models x"):
        assert part in got.text
    alone = plan(CONFIG, held, **sizes, contexts=None)
    assert alone.disk < got.disk and "pairs" not in alone.text and alone.other_flops == 0
    few = plan(CONFIG, held, **sizes, vocab_top_k=63)
    assert few.other_flops * 500 == got.other_flops
    with_base = plan(CONFIG, held, **sizes, base=True)
    rows = -(-10 // got.layout.batch_size) * got.layout.batch_size
    assert with_base.positions - got.positions == 316 * rows * 512


@pytest.mark.parametrize(
    ("contexts", "cut"),
    [("pool", name) for name in CUTS]
    + [("pair", name) for name in ("blocks of models", "one model at a time")],
)
def test_a_plan_counts_what_is_read(world, cut, contexts, seen):
    """Models times windows, fillers and repeats included."""
    cut = CUTS[cut]
    rows = world.tasks[0][2]
    scored = (rows.weights > 0).sum(1)
    run(
        world,
        0,
        range(5) if contexts == "pool" else [0],
        [] if contexts == "pool" else range(1, 5),
        cut,
    )
    positions, windows = positions_read([scored.tolist()], cut, rows.tokens.shape[1])
    models = blocks_read(5, cut.models_per_block, cut.group, contexts)
    assert sum(seen) == models * windows
    assert positions == windows * cut.batch_size * rows.tokens.shape[1]


def test_rows_at_a_time():
    assert rows_at_a_time([16, 8, 24], 8) == 8
    assert rows_at_a_time([12, 12], 8) == 6
    assert rows_at_a_time([1, 2, 1], 8) == 1 and rows_at_a_time([2] * 9, 8) == 2
    assert rows_at_a_time([3], 1) == 1
    assert rows_at_a_time([12, 12], 8, parts=4) == 8  # a multiple, so that devices share them
    assert rows_at_a_time([12, 12], 8, parts=16) == 6


def test_too_little_memory_is_one_line():
    with pytest.raises(ValueError, match=r"affinity\.memory is 0\.1 MiB, but one position of two"):
        layout(4, CONFIG, length=512, batch_size=8, memory=1e5)


def test_kernels_agree_on_what_a_pair_is(world):
    """`between` of two blocks and `pairwise` of their union give the same numbers."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3, 50))
    x = (x - np.log(np.exp(x).sum(-1, keepdims=True))).astype(np.float32)
    weights = np.ones((1, 3), np.float32)
    whole = np.asarray(jsd.pairwise(x, weights))[0]
    apart = np.asarray(jsd.between(x[:2], x[2:], weights))[0]
    i, j = np.triu_indices(6, 1)
    np.testing.assert_allclose(whole[(i < 2) & (j >= 2)], apart.reshape(-1), rtol=1e-6)
