"""Checkpoints: whole or refused, on any mesh."""

import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.models.sharding import shardings_of
from taskpgm.training import checkpoint
from taskpgm.training.checkpoint import Checkpoints, restore_tree, save_tree
from taskpgm.training.mesh import make_mesh

# Where a read fails, Orbax leaves coroutines of others unawaited.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


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


def files(path):
    """All files of a checkpoint, the largest first."""
    found = [p for p in path.rglob("*") if p.is_file()]
    return sorted(found, key=lambda p: -p.stat().st_size)


def test_restores_on_another_mesh(tmp_path):
    tree = tree_on(make_mesh({"fsdp": 8}))
    save_tree(tmp_path / "a", tree)
    like = tree_on(make_mesh({"fsdp": 2, "tensor": 4}), value=-1.0)
    restored = restore_tree(tmp_path / "a", like)
    equal(restored, tree)
    assert restored["matrix"].sharding == like["matrix"].sharding
    assert restored["matrix"].addressable_shards[0].data.shape == (4, 4)


def test_replaces_what_is_there(tmp_path):
    mesh = make_mesh({"data": 8})
    save_tree(tmp_path / "a", tree_on(mesh, 1.0))
    save_tree(tmp_path / "a", tree_on(mesh, 2.0))
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    equal(restore_tree(tmp_path / "a", tree_on(mesh)), tree_on(mesh, 2.0))


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "short": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "altered": lambda file: file.write_bytes(
        bytes(b ^ (i == file.stat().st_size // 2) for i, b in enumerate(file.read_bytes()))
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_of_any_file_is_named_or_harmless(tmp_path, damage):
    tree = tree_on(make_mesh({"data": 8}))
    save_tree(tmp_path / "whole", tree)
    noticed = 0
    for number in range(len(files(tmp_path / "whole"))):
        path = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", path)
        damage(files(path)[number])
        try:
            equal(restore_tree(path, tree), tree)
        except checkpoint.Damaged as error:
            assert f"{path} is damaged: " in str(error) and "\n" not in str(error)
            noticed += 1
    assert noticed >= 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_a_changed_bit_of_an_array_is_noticed(tmp_path, monkeypatch, dtype):
    """Even if the file format itself does not notice."""
    x = jnp.ones((8, 4), dtype)
    save_tree(tmp_path / "a", {"x": x})
    equal(restore_tree(tmp_path / "a", {"x": x}), {"x": x})
    real, zero = checkpoint.ocp.load, jnp.zeros((), dtype)

    def flipped(*args):
        return {"x": real(*args)["x"].at[3, 1].set(zero)}

    monkeypatch.setattr(checkpoint.ocp, "load", flipped)
    with pytest.raises(checkpoint.Damaged, match="an array or its sum has been altered"):
        restore_tree(tmp_path / "a", {"x": x})


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist"):
        restore_tree(tmp_path / "nothing", {"x": jnp.ones(3)})


def test_another_model_is_refused(tmp_path):
    tree = tree_on(make_mesh({"data": 8}))
    save_tree(tmp_path / "a", tree)
    wrong = jax.device_put(jnp.zeros((8, 15)), tree["matrix"].sharding)
    less = {name: x for name, x in tree.items() if name != "half"}
    for like in (tree | {"matrix": wrong}, tree | {"more": tree["step"]}, less):
        with pytest.raises(ValueError, match="does not fit this model") as error:
            restore_tree(tmp_path / "a", like)
        assert "\n" not in str(error.value)


def test_keeps_the_newest(tmp_path):
    tree = tree_on(make_mesh({"data": 8}))
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (3, 6, 9, 10):
        checkpoints.save(step, tree)
    checkpoints.wait()
    assert checkpoints.steps() == [9, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "9"]


def test_goes_back_to_the_one_before(tmp_path, caplog):
    mesh = make_mesh({"fsdp": 8})
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, tree_on(mesh, step), {"k": step})
    checkpoints.wait()
    checkpoints.close()
    for file in files(tmp_path / "2"):
        file.write_bytes(file.read_bytes()[:100])
    (tmp_path / "9.orbax-checkpoint-tmp-1").mkdir()  # what a kill leaves behind
    checkpoints = Checkpoints(tmp_path)
    with caplog.at_level(logging.WARNING, "absl"):
        step, tree, meta = checkpoints.restore_newest(tree_on(mesh))
    assert f"{tmp_path / '2'} is damaged" in caplog.text
    equal(tree, tree_on(mesh, 1))
    assert step == 1 and meta == {"k": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == [".2.old", "1"]
    checkpoints.save(2, tree)  # again
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("INTERNAL: write failed\n[OS error 28: No space left on device]")

    monkeypatch.setattr(checkpoint.ocp, "save", full)
    with pytest.raises(OSError, match="the disk is full: .*start the same command again") as error:
        save_tree(tmp_path / "a", {"x": jnp.ones(3)})
    assert "\n" not in str(error.value)

    checkpoints = Checkpoints(tmp_path / "b")
    monkeypatch.setattr(checkpoint.ocp.training.Checkpointer, "wait", full)
    checkpoints.save(1, {"x": jnp.ones(3)})
    with pytest.raises(OSError, match="the disk is full"):
        checkpoints.wait()
