"""Cells: whole or not there, found again, and only the missing ones computed."""

import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from taskpgm import affinity, artefact
from taskpgm.affinity import store
from taskpgm.affinity.budget import Layout
from taskpgm.models.scoring import score_examples

CUT = Layout(2, 2, 5, 24, 6, 64)


def compute(world, folder, models, tasks=None, cut=CUT, **options):
    """Model i and task i of the run are `models[i]` and `tasks[i]` of the world."""
    tasks = models if tasks is None else tasks

    def models_of(indices):
        chosen = np.array([models[i] for i in indices])
        return jax.tree.map(lambda x: x[chosen], world.models)

    return affinity.compute_scores(
        None,
        world.shared,
        models_of,
        [world.tasks[k][2] for k in tasks],
        [len(world.tasks[k][0]) for k in tasks],
        model_keys=[f"model {i}" for i in models],
        folder=folder,
        memory=1e9,
        batch_size=2,
        forward=world.forward,
        cut=cut,
        **options,
    )


def test_a_cell_is_read_as_written(tmp_path):
    name = store.key("kind", "model", "task")
    assert store.read(tmp_path, name) is None
    store.write(tmp_path, name, a=np.arange(3), b=np.array(["x", "y"]))
    cell = store.read(tmp_path, name)
    assert cell["a"].tolist() == [0, 1, 2] and cell["b"].tolist() == ["x", "y"]
    assert len({store.key("a", "bc"), store.key("ab", "c"), store.key("a", "b", "c")}) == 3
    assert not list(tmp_path.rglob(".*.tmp"))


def test_many_processes_write_the_same_cell(tmp_path):
    name, values = store.key("kind", "model", "task"), np.arange(100_000)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(store.write, tmp_path, name, a=values) for _ in range(64)]:
            done.result()
    assert (store.read(tmp_path, name)["a"] == values).all()
    assert len(list(tmp_path.rglob("*.*"))) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
        lambda data: b"",
        lambda data: data[:32],
    ],
)
def test_a_damaged_cell_is_found_and_said(tmp_path, caplog, damage):
    name = store.key("kind", "model", "task")
    store.write(tmp_path, name, a=np.arange(99))
    file = store.path(tmp_path, name)
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert store.read(tmp_path, name) is None
    assert f"{file} is damaged" in caplog.text


def test_a_cell_in_the_place_of_another_is_damaged(tmp_path):
    a, b = store.key("a"), store.key("b")
    store.write(tmp_path, a, x=np.zeros(1))
    store.path(tmp_path, b).parent.mkdir(parents=True, exist_ok=True)
    store.path(tmp_path, a).rename(store.path(tmp_path, b))
    assert store.read(tmp_path, b) is None


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artefact.os, "replace", full)
    with pytest.raises(OSError, match=r"cannot write the score .*\.cell: No space left"):
        store.write(tmp_path, store.key("a"), x=np.zeros(1))
    assert not [f for f in tmp_path.rglob("*") if f.is_file()]


def assert_right(world, scores, models):
    """Against one model and one example at a time, and pairs against the definition."""
    n = len(models)
    task = np.repeat(range(n), [len(world.tasks[k][0]) for k in models])
    assert (scores.task == task).all()
    want = [
        [world.log_likelihood_alone(i, *e) for k in models for e in zip(*world.tasks[k][:2])]  # noqa: B905
        for i in models
    ]
    np.testing.assert_allclose(scores.log_likelihood, want, rtol=2e-6)
    for at, k in enumerate(models):
        values, count = scores.divergence(at)
        examples = list(zip(*world.tasks[k][:2], strict=True))
        assert count.tolist() == [1] * len(examples)
        for a in range(n):
            for b in range(n):
                if scores.grid.wanted(at)[a, b]:
                    want = [world.divergence_alone(models[a], models[b], *e) for e in examples]
                    np.testing.assert_allclose(values[:, a, b], want, rtol=2e-5)


def row_and_column(n, new):
    return {(i, k) for i in range(n) for k in range(n) if new in (i, k)}


@pytest.mark.parametrize("contexts", ["pool", "pair"])
@pytest.mark.parametrize("new", [0, 1, 2])
def test_a_new_task_costs_one_row_and_one_column(world, tmp_path, contexts, new):
    old = [k for k in (0, 1, 2) if k != new]
    first = compute(world, tmp_path, old, contexts=contexts)
    assert set(first.computed) == {(i, k) for i in range(2) for k in range(2)}
    assert_right(world, first, old)
    files = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*.cell")}

    scores = compute(world, tmp_path, [0, 1, 2], contexts=contexts)
    assert set(scores.computed) == row_and_column(3, new)
    assert_right(world, scores, [0, 1, 2])
    assert all(f.stat().st_mtime_ns == when for f, when in files.items())  # none written again
    assert compute(world, tmp_path, [0, 1, 2], contexts=contexts).computed == ()


def test_the_new_row_and_column_run_few_models(world, tmp_path, monkeypatch):
    """With 'pair' contexts an old task needs two models, its own and the new one."""
    compute(world, tmp_path, [0, 1], contexts="pair")
    seen = []
    real = affinity.scores.accumulate

    def spy(forward, shared, models_of, new, old, *rest, **options):
        seen.append(len(new) + len(old))
        return real(forward, shared, models_of, new, old, *rest, **options)

    monkeypatch.setattr(affinity.scores, "accumulate", spy)
    compute(world, tmp_path, [0, 1, 2], contexts="pair")
    assert seen == [2, 2, 3]


def test_a_damaged_cell_is_computed_again_alone(world, tmp_path, caplog):
    whole = compute(world, tmp_path, [0, 1, 2])
    for kind in ("_likelihood", "_divergence"):
        file = store.path(tmp_path, getattr(whole.grid, kind)(2, 1))
        data = bytearray(file.read_bytes())
        data[-40] ^= 255
        file.write_bytes(data)
        with caplog.at_level(logging.WARNING):
            again = compute(world, tmp_path, [0, 1, 2])
        assert str(file) in caplog.text
        assert again.computed == ((2, 1),)
        assert_right(world, again, [0, 1, 2])


@contextlib.contextmanager
def killed_after(writes, monkeypatch):
    """The run inside ends abruptly when it is about to write one cell more than `writes`."""
    real, left = store.write, iter(range(writes))

    def dying(*args, **arrays):
        if next(left, None) is None:
            raise KeyboardInterrupt
        real(*args, **arrays)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store, "write", dying)
        yield


@pytest.mark.parametrize("left", [0, 1, 3, 5, 6, 9, 13, 17])
def test_killed_between_two_cells_it_ends_with_the_same_bits(
    world, tmp_path, whole, monkeypatch, left
):
    with killed_after(left, monkeypatch):
        compute(world, tmp_path, [0, 1, 2])
    again = compute(world, tmp_path, [0, 1, 2])
    assert len(again.computed) <= 9 - 3 * (left // 6)  # a task is 3 + 2 cells and a note
    assert (again.log_likelihood == whole.log_likelihood).all()
    assert (again.mean_divergence() == whole.mean_divergence()).all()
    assert sum(1 for _ in tmp_path.rglob("*.cell")) == 15


@pytest.mark.parametrize("windows", [1, 4, 8])
def test_killed_within_a_task_it_loses_a_window(world, tmp_path, whole, monkeypatch, windows):
    """With sums kept after every window: what was added up is not computed again."""
    monkeypatch.setattr(affinity.scores, "KEEP_EVERY", 0.0)
    real, seen = affinity.stream._reduce, []

    def counted(*args, **options):
        seen.append(args)
        return real(*args, **options)

    monkeypatch.setattr(affinity.stream, "_reduce", counted)
    compute(world, tmp_path / "alone", [0, 1, 2])
    every, seen[:] = len(seen), []
    with killed_after(windows, monkeypatch):
        compute(world, tmp_path / "killed", [0, 1, 2])
    again = compute(world, tmp_path / "killed", [0, 1, 2])
    # One that was computed but not kept, and those that were on their way behind it.
    assert every <= len(seen) <= every + 3
    assert (again.log_likelihood == whole.log_likelihood).all()
    assert (again.mean_divergence() == whole.mean_divergence()).all()


def test_sums_of_another_cut_are_not_taken(world, tmp_path, monkeypatch):
    monkeypatch.setattr(affinity.scores, "KEEP_EVERY", 0.0)
    with killed_after(1, monkeypatch):
        compute(world, tmp_path, [0, 1, 2])
    assert_right(world, compute(world, tmp_path, [0, 1, 2], cut=CUT._replace(window=6)), [0, 1, 2])


def test_killed_and_then_another_task(world, tmp_path, monkeypatch):
    with killed_after(5, monkeypatch):
        compute(world, tmp_path, [0, 2])
    assert_right(world, compute(world, tmp_path, [0, 1, 2]), [0, 1, 2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory, world):
    return compute(world, tmp_path_factory.mktemp("whole"), [0, 1, 2])


def test_cells_of_what_is_gone_are_deleted(world, tmp_path):
    compute(world, tmp_path, [0, 1, 2])
    many = sum(1 for _ in tmp_path.rglob("*.cell"))
    (tmp_path / "ab").mkdir(exist_ok=True)
    (tmp_path / "ab" / ".x.cell.0123.tmp").write_bytes(b"half")
    compute(world, tmp_path, [0, 2])
    few = sum(1 for _ in tmp_path.rglob("*.cell"))
    assert many == 9 + 6 and few == 4 + 2
    assert not list(tmp_path.rglob(".*.tmp"))


def test_log_likelihoods_alone(world, tmp_path):
    scores = compute(world, tmp_path, [0, 1, 2], contexts=None)
    examples, _, rows = world.tasks[1]
    model = jax.tree.map(lambda x: x[:3], world.models)
    want, tokens = score_examples(
        world.forward, world.shared, model, rows, len(examples), batch_size=2
    )
    np.testing.assert_allclose(scores.log_likelihood[:, scores.task == 1], want, rtol=1e-6)
    assert (scores.tokens[scores.task == 1] == tokens).all()
    assert sum(1 for _ in tmp_path.rglob("*.cell")) == 9


def test_progress_tells_every_task(world, tmp_path):
    told = []
    compute(world, tmp_path, [0, 1, 2], progress=lambda *x: told.append(x))
    assert told == [(k, 3, "3 of 3 models scored") for k in (1, 2, 3)]


def test_refusals(world, tmp_path):
    with pytest.raises(ValueError, match="contexts must be"):
        compute(world, tmp_path, [0, 1], contexts="both")
    with pytest.raises(ValueError, match="model_keys repeat"):
        compute(world, tmp_path, [0, 0], tasks=[0, 1])
    with pytest.raises(ValueError, match="one entry per task"):
        compute(world, tmp_path, [0, 1], tasks=[0])
    examples, prompts, rows = world.tasks[0]
    silent = rows._replace(weights=np.where(rows.example == 3, 0, rows.weights))
    world = world._replace(tasks=[(examples, prompts, silent), *world.tasks[1:]])
    with pytest.raises(ValueError, match="task 0 has 7 .* example 3 has no token to score"):
        compute(world, tmp_path, [0, 1])
