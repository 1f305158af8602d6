"""Checkpoints: whole or refused, on any mesh."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.models.sharding import shardings_of
from taskpgm.training import checkpoint
from taskpgm.training.checkpoint import Manager, restore_tree, save_tree
from taskpgm.training.mesh import make_mesh


def tree_on(mesh, value=0.0):
    def put(x, *axes):
        return jax.device_put(x, shardings_of(axes, x, mesh))

    matrix = jnp.arange(8 * 16, dtype=jnp.float32).reshape(8, 16) + value
    return {
        "matrix": put(matrix, "embed", "mlp"),
        "half": put(jnp.arange(8, dtype=jnp.bfloat16) + value, "embed"),
        "step": put(jnp.int32(3)),
    }


def equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def biggest_file(path):
    return max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_restores_on_another_mesh(tmp_path):
    tree = tree_on(make_mesh({"fsdp": 8}))
    save_tree(tmp_path / "a", tree, {"note": "x"})
    like = tree_on(make_mesh({"fsdp": 2, "tensor": 4}), value=-1.0)
    restored = restore_tree(tmp_path / "a", like)
    equal(restored, tree)
    assert restored["matrix"].sharding == like["matrix"].sharding
    assert restored["matrix"].addressable_shards[0].data.shape == (4, 4)
    assert checkpoint.read_meta(tmp_path / "a") == {"note": "x"}


def test_replaces_only_by_a_whole_one(tmp_path, monkeypatch):
    mesh = make_mesh({"data": 8})
    save_tree(tmp_path / "a", tree_on(mesh, 1.0))
    save_tree(tmp_path / "a", tree_on(mesh, 2.0))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]

    def fail(*_):
        raise RuntimeError("killed")

    monkeypatch.setattr(checkpoint, "_seal", fail)
    with pytest.raises(RuntimeError):
        save_tree(tmp_path / "a", tree_on(mesh, 3.0))
    equal(restore_tree(tmp_path / "a", tree_on(mesh)), tree_on(mesh, 2.0))
    monkeypatch.undo()
    save_tree(tmp_path / "a", tree_on(mesh, 3.0))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_damage_is_named(tmp_path):
    tree = tree_on(make_mesh({"data": 8}))
    for name in ("short", "altered", "missing", "unfinished"):
        save_tree(tmp_path / name, tree)
    file = biggest_file(tmp_path / "short")
    file.write_bytes(file.read_bytes()[:-1])
    file = biggest_file(tmp_path / "altered")
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    biggest_file(tmp_path / "missing").unlink()
    (tmp_path / "unfinished" / checkpoint.SEAL).unlink()
    for name, words in (
        ("short", "bytes, not"),
        ("altered", "has been altered"),
        ("missing", "is missing"),
        ("unfinished", "never finished"),
    ):
        with pytest.raises(checkpoint.Damaged, match=rf"{name} is damaged: .*{words}"):
            restore_tree(tmp_path / name, tree)
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        restore_tree(tmp_path / "nothing", tree)


def test_another_model_is_refused(tmp_path):
    tree = tree_on(make_mesh({"data": 8}))
    save_tree(tmp_path / "a", tree)
    wrong = jax.device_put(jnp.zeros((8, 15)), tree["matrix"].sharding)
    for like in (tree | {"matrix": wrong}, tree | {"more": tree["step"]}):
        with pytest.raises(ValueError, match="does not fit this model") as error:
            restore_tree(tmp_path / "a", like)
        assert "\n" not in str(error.value)


def test_keeps_the_newest_and_the_best(tmp_path):
    tree = tree_on(make_mesh({"data": 8}))
    manager = Manager(tmp_path, keep=2)
    for step, metric in enumerate([3.0, 1.0, 2.0, 5.0, 4.0], start=1):
        manager.save(step, tree, metric=metric)
    manager.wait()
    assert manager.steps() == [2, 4, 5]
    assert manager.best() == 2


def test_goes_back_to_the_one_before(tmp_path, caplog):
    mesh = make_mesh({"fsdp": 8})
    manager = Manager(tmp_path)
    for step in (1, 2):
        manager.save(step, tree_on(mesh, step), meta={"k": step})
    manager.wait()
    file = biggest_file(manager.path(2))
    file.write_bytes(file.read_bytes()[:100])
    (tmp_path / "00000009.orbax-checkpoint-tmp-1").mkdir()  # what a kill leaves behind
    manager = Manager(tmp_path)
    with caplog.at_level(logging.WARNING, "absl"):
        assert manager.newest() == 1
    assert str(manager.path(2)) in caplog.text and file.name in caplog.text
    tree, meta = manager.restore(1, tree_on(mesh))
    equal(tree, tree_on(mesh, 1))
    assert meta["k"] == 1
    assert [p.name for p in tmp_path.iterdir()] == [manager.path(1).name]


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("INTERNAL: write failed\n[OS error 28: No space left on device]")

    monkeypatch.setattr(checkpoint.ocp, "save", full)
    with pytest.raises(OSError, match="the disk is full: .*start the same command again") as error:
        save_tree(tmp_path / "a", {"x": jnp.ones(3)})
    assert "\n" not in str(error.value)

    def later(*_, **__):
        class Response:
            result = full

        return Response()

    monkeypatch.setattr(checkpoint.ocp, "save_async", later)
    manager = Manager(tmp_path)
    manager.save(1, {"x": jnp.ones(3)})
    with pytest.raises(OSError, match="the disk is full"):
        manager.wait()


def test_the_seal_is_readable(tmp_path):
    save_tree(tmp_path / "a", {"x": jnp.ones(3)})
    seal = json.loads((tmp_path / "a" / checkpoint.SEAL).read_text())
    assert set(seal) == {"meta", "files"} and len(seal["files"]) > 1
