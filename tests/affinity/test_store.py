"""Files of scores are written whole or not at all, are found again, and only gaps are computed."""

import contextlib
import logging

import jax
import numpy as np
import pytest

from taskpgm import affinity
from taskpgm.affinity import compute as module
from taskpgm.affinity.compute import missing_pairs
from taskpgm.affinity.layout import Layout
from taskpgm.affinity.pairwise import reduce_window
from taskpgm.affinity.store import ScoreStore, TaskScores, fingerprint, merge, select
from taskpgm.models import DecoderConfig
from taskpgm.models.scoring import score_examples

CUT = Layout(2, 2, 5, 24, 6, 64)
CONFIG = DecoderConfig("llama", 37, 16, 16, 1, 1, 1, 16, 64)  # of another model: never run


def compute(world, folder, models, tasks=None, **options):
    """Model i and task i of the run are `models[i]` and `tasks[i]` of the world."""
    tasks = models if tasks is None else tasks

    def models_of(indices):
        chosen = np.array([models[i] for i in indices])
        return jax.tree.map(lambda x: x[chosen], world.models)

    options = {"cut": CUT} | options
    return affinity.compute_scores(
        CONFIG,
        world.shared,
        models_of,
        [world.tasks[k][2] for k in tasks],
        [len(world.tasks[k][0]) for k in tasks],
        model_keys=[f"model {i}" for i in models],
        folder=folder,
        memory=1e9,
        batch_size=2,
        forward=world.forward,
        **options,
    )


def made(*models, examples=3, seed=0):
    """Made-up scores of some models on one task."""
    rng = np.random.default_rng(seed)
    divergence = rng.random((examples, len(models), len(models))).astype(np.float32)
    divergence = 0.5 * (divergence + divergence.transpose(0, 2, 1)).astype(np.float64)
    divergence[:, range(len(models)), range(len(models))] = 0.0
    values = rng.normal(size=(len(models), examples))
    return TaskScores(models, values, np.arange(1, examples + 1), divergence)


def assert_same(a, b):
    assert a.models == b.models
    for x, y in zip(a[1:], b[1:], strict=True):
        np.testing.assert_array_equal(x, y)


# --- Files ---------------------------------------------------------------------------------------
def test_a_file_is_read_as_written(tmp_path):
    store, scores = ScoreStore(tmp_path / "new"), made("a", "b", "c")
    assert store.load("task") is None
    scores.divergence[:, 0, 2] = scores.divergence[:, 2, 0] = np.nan  # a pair not asked for
    store.add("task", [scores], scores.models)
    got = store.load("task")
    rounded = scores._replace(divergence=scores.divergence.astype(np.float32))
    assert_same(got, rounded)
    assert [path.name for path in store.folder.iterdir()] == ["task.npz"]


def test_models_are_added_and_dropped_by_key(tmp_path):
    store, old, new = ScoreStore(tmp_path), made("a", "b"), made("b", "c", seed=1)
    store.add("task", [old], old.models)
    store.add("task", [new], ["c", "b", "a"])
    got = store.load("task")
    assert got.models == ("c", "b", "a")
    np.testing.assert_array_equal(
        got.log_likelihood, [new.log_likelihood[1], new.log_likelihood[0], old.log_likelihood[0]]
    )
    assert np.isnan(got.divergence[:, 0, 2]).all()
    np.testing.assert_allclose(got.divergence[:, 1, 2], old.divergence[:, 0, 1], rtol=1e-7)
    store.add("task", [new], ["c"])
    assert store.load("task").models == ("c",)


def test_select_and_merge():
    scores = made("a", "b", "c")
    got = select(scores, ["c", "x", "a"])
    np.testing.assert_array_equal(got.log_likelihood[[0, 2]], scores.log_likelihood[[2, 0]])
    np.testing.assert_array_equal(got.divergence[:, 0, 2], scores.divergence[:, 2, 0])
    assert np.isnan(got.log_likelihood[1]).all() and np.isnan(got.divergence[:, 1]).all()
    assert_same(merge([got, scores], scores.models), scores)


def test_fingerprints_tell_content_type_shape_and_settings_apart():
    x = np.arange(6, dtype=np.int32)
    kinds = [fingerprint([x]), fingerprint([x], 1), fingerprint([x], "1"), fingerprint([x, x])]
    kinds += [fingerprint([x + 1]), fingerprint([x.reshape(2, 3)]), fingerprint([x.view("u4")])]
    assert len(set(kinds)) == len(kinds) and kinds[0] == fingerprint([x.copy()])


@pytest.mark.parametrize("share", np.linspace(0, 1, 23, endpoint=False))
def test_a_damaged_file_is_found_and_said(tmp_path, caplog, share):
    """A flipped byte anywhere is noticed or harmless; a truncated file is noticed."""
    store, scores = ScoreStore(tmp_path), made("a", "b", "c", examples=50)
    store.add("task", [scores], scores.models)
    path, whole = store.path("task"), store.load("task")
    content = path.read_bytes()
    at = int(share * len(content))
    with caplog.at_level(logging.WARNING):
        path.write_bytes(content[:at] + bytes([content[at] ^ 8]) + content[at + 1 :])
        got = store.load("task")
        if got is not None:
            assert_same(got, whole)
        caplog.clear()
        path.write_bytes(content[:at])
        assert store.load("task") is None
    assert f"{path} is damaged" in caplog.text


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    store, scores = ScoreStore(tmp_path), made("a")
    store.add("task", [scores], scores.models)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match=r"cannot write the scores .*task\.npz: No space left"):
        store.add("task", [made("b")], ["a", "b"])
    assert store.load("task").models == ("a",)
    assert [path.name for path in tmp_path.iterdir()] == ["task.npz"]


# --- Scores --------------------------------------------------------------------------------------
def assert_right(world, scores, models, tasks=None):
    """Against one model and one example at a time, and pairs against the definition."""
    tasks = models if tasks is None else tasks
    task = np.repeat(range(len(tasks)), [len(world.tasks[k][0]) for k in tasks])
    assert (scores.task == task).all()
    examples = [list(zip(*world.tasks[k][:2], strict=True)) for k in tasks]
    want = [[world.log_likelihood_alone(i, *e) for part in examples for e in part] for i in models]
    np.testing.assert_allclose(scores.log_likelihood, want, rtol=2e-6)
    n = len(models)
    for k, part in enumerate(examples):
        values = scores.divergence(k)
        assert len(values) == len(part) and scores.examples_per_bin(k).tolist() == [1] * len(part)
        for a in range(n):
            for b in range(n):
                if scores.contexts == "pool" or (scores.contexts and k in (a, b) and k < n):
                    want = [world.divergence_alone(models[a], models[b], *e) for e in part]
                    np.testing.assert_allclose(values[:, a, b], want, rtol=2e-5, atol=1e-12)
                elif a != b:
                    assert np.isnan(values[:, a, b]).all()


def row_and_column(n, new):
    return {(i, k) for i in range(n) for k in range(n) if new in (i, k)}


@pytest.mark.parametrize("contexts", ["pool", "pair"])
@pytest.mark.parametrize("new", [0, 1, 2])
def test_a_new_task_costs_one_row_and_one_column(world, tmp_path, contexts, new):
    old = [k for k in (0, 1, 2) if k != new]
    first = compute(world, tmp_path, old, contexts=contexts)
    assert set(first.computed) == {(i, k) for i in range(2) for k in range(2)}
    assert_right(world, first, old)

    scores = compute(world, tmp_path, [0, 1, 2], contexts=contexts)
    assert set(scores.computed) == row_and_column(3, new)
    assert_right(world, scores, [0, 1, 2])
    same = np.isin(scores.task, old)  # what was stored keeps its bits
    np.testing.assert_array_equal(scores.log_likelihood[old][:, same], first.log_likelihood)
    for at, k in enumerate(old):
        stored = scores.divergence(k)[:, old][:, :, old]
        np.testing.assert_array_equal(stored, first.divergence(at))
    assert compute(world, tmp_path, [0, 1, 2], contexts=contexts).computed == ()


def test_the_new_row_and_column_run_few_models(world, tmp_path, monkeypatch):
    """With "pair" contexts an old task needs two models, its own and the new one."""
    compute(world, tmp_path, [0, 1], contexts="pair")
    real, seen = module.score_pairs, []

    def spy(models, left, right, *rest, **options):
        seen.append(len(left) + len(right))
        return real(models, left, right, *rest, **options)

    monkeypatch.setattr(module, "score_pairs", spy)
    compute(world, tmp_path, [0, 1, 2], contexts="pair")
    assert seen == [2, 2, 3]


@pytest.mark.parametrize(
    "contexts, k, new, left, right",
    [
        ("pool", 1, [0, 1, 2], [0, 1, 2], []),
        ("pool", 1, [2], [2], [0, 1]),
        ("pair", 1, [0, 1, 2], [1], [0, 2]),
        ("pair", 1, [2], [1], [2]),
        ("pair", 1, [1], [1], [0, 2]),
        ("pair", 3, [0, 1, 2], [], []),  # a target: no model was trained for it
        (None, 1, [0, 1, 2], [], []),
    ],
)
def test_pairs_that_are_missing(contexts, k, new, left, right):
    assert missing_pairs(contexts, k, 3, new) == (left, right)


@pytest.mark.parametrize("contexts", ["pool", "pair", None])
def test_targets_are_scored_by_models_of_other_tasks(world, tmp_path, contexts):
    scores = compute(world, tmp_path, [0, 2], tasks=[0, 2, 1], contexts=contexts)
    assert (scores.num_models, scores.num_tasks) == (2, 3)
    assert set(scores.computed) == {(i, k) for i in range(2) for k in range(3)}
    assert_right(world, scores, [0, 2], tasks=[0, 2, 1])
    # A target that becomes a task keeps what is known of it.
    again = compute(world, tmp_path, [0, 2, 1], contexts=contexts)
    column = {(i, 2) for i in range(3)} if contexts == "pair" else {(2, 2)}
    assert set(again.computed) == {(2, 0), (2, 1)} | column
    assert_right(world, again, [0, 2, 1])


@pytest.mark.parametrize("contexts", ["pool", "pair"])
def test_two_tasks_with_the_same_rows(world, tmp_path, contexts):
    twice = world._replace(tasks=[world.tasks[0], world.tasks[0], world.tasks[2]])
    scores = compute(twice, tmp_path, [0, 1, 2], contexts=contexts)
    assert_right(twice, scores, [0, 1, 2])
    again = compute(twice, tmp_path, [0, 1, 2], contexts=contexts)
    assert again.computed == ()
    assert_equal_bits(again, scores)


def test_a_damaged_file_costs_its_task_alone(world, tmp_path, caplog):
    whole = compute(world, tmp_path, [0, 1, 2])
    file = sorted(tmp_path.iterdir())[0]
    file.write_bytes(file.read_bytes()[:-40])
    with caplog.at_level(logging.WARNING):
        again = compute(world, tmp_path, [0, 1, 2])
    assert str(file) in caplog.text
    assert len(again.computed) == 3 and len({k for _, k in again.computed}) == 1
    assert_equal_bits(again, whole)


def assert_equal_bits(a, b):
    np.testing.assert_array_equal(a.log_likelihood, b.log_likelihood)
    np.testing.assert_array_equal(a.mean_divergence(), b.mean_divergence())


@contextlib.contextmanager
def killed_before(name, call, monkeypatch):
    """The run inside ends abruptly at call number `call` of a function of compute.py."""
    real, count = getattr(module, name), iter(range(call))

    def dying(*args, **options):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, name, dying)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, world):
    return compute(world, tmp_path_factory.mktemp("whole"), [0, 1, 2])


@pytest.mark.parametrize("tasks", [0, 1, 2])
def test_killed_within_a_task_it_loses_that_task_and_no_bit(
    world, tmp_path, whole, monkeypatch, tasks
):
    with killed_before("score_pairs", tasks, monkeypatch):
        compute(world, tmp_path, [0, 1, 2])
    assert len(list(tmp_path.glob("*.npz"))) == tasks
    again = compute(world, tmp_path, [0, 1, 2])
    assert {k for _, k in again.computed} == set(range(tasks, 3))
    assert_equal_bits(again, whole)


@pytest.mark.parametrize("tasks", [0, 1, 2])
def test_killed_while_a_task_is_added(world, tmp_path, monkeypatch, tasks):
    for folder in ("alone", "killed"):
        compute(world, tmp_path / folder, [0, 2])
    added = compute(world, tmp_path / "alone", [0, 1, 2])
    with killed_before("score_pairs", tasks, monkeypatch):
        compute(world, tmp_path / "killed", [0, 1, 2])
    assert_equal_bits(compute(world, tmp_path / "killed", [0, 1, 2]), added)


def test_files_of_what_is_gone_are_deleted(world, tmp_path):
    compute(world, tmp_path, [0, 1, 2])
    assert len(list(tmp_path.iterdir())) == 3
    compute(world, tmp_path, [0, 2])
    assert len(list(tmp_path.iterdir())) == 2
    compute(world, tmp_path, [0, 2], vocab_top_k=4)
    assert len(list(tmp_path.iterdir())) == 2


def test_other_settings_are_other_scores(world, tmp_path):
    whole = compute(world, tmp_path, [0, 1])
    few = compute(world, tmp_path, [0, 1], vocab_top_k=2)
    assert len(few.computed) == 4
    assert (few.mean_divergence() <= whole_divergence(world, tmp_path) + 1e-6).all()
    assert whole.contexts == few.contexts == "pool"


def whole_divergence(world, folder):
    return compute(world, folder / "again", [0, 1]).mean_divergence()


def test_log_likelihoods_alone(world, tmp_path):
    scores = compute(world, tmp_path, [0, 1, 2], contexts=None)
    examples, _, rows = world.tasks[1]
    model = jax.tree.map(lambda x: x[:3], world.models)
    want, tokens = score_examples(
        world.forward, world.shared, model, rows, len(examples), batch_size=2
    )
    np.testing.assert_allclose(scores.log_likelihood[:, scores.task == 1], want, rtol=1e-6)
    assert (scores.tokens[scores.task == 1] == tokens).all()


def test_no_task_compiles_anew(world, tmp_path):
    reduce_window.clear_cache()
    compute(world, tmp_path, [0, 1, 2])
    assert reduce_window._cache_size() == 1


def test_progress_tells_every_task(world, tmp_path):
    told = []
    compute(world, tmp_path, [0, 1, 2], progress=lambda *x: told.append(x))
    assert told == [(k, 3, "3 of 3 models scored") for k in (1, 2, 3)]


def test_refusals(world, tmp_path):
    with pytest.raises(ValueError, match="contexts must be"):
        compute(world, tmp_path, [0, 1], contexts="both")
    with pytest.raises(ValueError, match="model_keys repeat"):
        compute(world, tmp_path, [0, 0], tasks=[0, 1])
    with pytest.raises(ValueError, match="one per task that is mixed; got 1, 1 and 2"):
        compute(world, tmp_path, [0, 1], tasks=[0])
    with pytest.raises(ValueError, match="affinity.kernel must be"):
        compute(world, tmp_path, [0, 1], kernel="triton")
    examples, prompts, rows = world.tasks[0]
    silent = rows._replace(weights=np.where(rows.example == 3, 0, rows.weights))
    world = world._replace(tasks=[(examples, prompts, silent), *world.tasks[1:]])
    with pytest.raises(ValueError, match="task 0 has 7 .* example 3 has no token to score"):
        compute(world, tmp_path, [0, 1])
    assert not list(tmp_path.iterdir())
