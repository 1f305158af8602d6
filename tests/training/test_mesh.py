"""Mesh sizes and sharding rules."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from taskpgm.models import init_params, logical_axes
from taskpgm.models.sharding import ANY, constrain, shardings_of, spec_of
from taskpgm.training.mesh import AXES, make_mesh, put_batch, stacked


@pytest.mark.parametrize(
    "axes,sizes",
    [
        (None, (1, 8, 1, 1)),
        ({"data": 8}, (1, 8, 1, 1)),
        ({"fsdp": -1}, (1, 1, 8, 1)),
        ({"tensor": 4, "data": -1}, (1, 2, 1, 4)),
        ({"task": 4, "fsdp": 2}, (4, 1, 2, 1)),
        ({"task": 8, "data": -1}, (8, 1, 1, 1)),
    ],
)
def test_sizes(axes, sizes):
    mesh = make_mesh(axes)
    assert tuple(mesh.shape.values()) == sizes and mesh.axis_names == AXES
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(
    "axes,words",
    [
        ({"model": 8}, "unknown axis 'model'"),
        ({"data": 3}, "does not multiply to the 8 devices"),
        ({"data": 3, "fsdp": -1}, "does not multiply to the 8 devices"),
        ({"data": -1, "fsdp": -1}, "at most one of them -1"),
        ({"data": 0}, "must be positive"),
    ],
)
def test_bad_sizes_are_named(axes, words):
    with pytest.raises(ValueError, match=words):
        make_mesh(axes)


def test_rules():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    spec = spec_of(("layers", "embed", "mlp"), (2, 4, 6), mesh)
    assert spec == PartitionSpec(None, "fsdp", "tensor")
    assert spec_of(("batch", None), (4, 4), mesh) == PartitionSpec(("data", "fsdp"), None)
    with pytest.raises(ValueError, match="no rule for the axis 'depth'"):
        spec_of(("depth",), (2,), mesh)


def test_what_does_not_divide_stays_whole():
    mesh, axes = make_mesh({"tensor": 4, "fsdp": 2}), ("embed", "vocab")
    assert spec_of(axes, (32, 50257), mesh) == PartitionSpec("fsdp", None)
    assert spec_of(axes, (32, 32000), mesh) == PartitionSpec("fsdp", "tensor")


def test_without_a_mesh_everything_stays_whole():
    x = jnp.zeros((8, 4))
    assert shardings_of(("batch", "embed"), x) is None
    assert spec_of(("batch", "embed"), x.shape) == PartitionSpec(None, None)
    assert constrain(x, ("batch", ANY)) is x


def test_every_axis_of_the_models_has_a_rule(tiny):
    axes = logical_axes(tiny)
    mesh = make_mesh({"fsdp": 2, "tensor": 4})
    shapes = jax.eval_shape(partial(init_params, tiny), jax.random.key(0))
    shardings = shardings_of(axes, shapes, mesh)
    assert shardings["layers"]["mlp"]["up_proj"]["kernel"].spec == PartitionSpec(
        None, "fsdp", "tensor"
    )
    more = stacked(axes)
    assert more["layers"]["mlp"]["up_proj"]["kernel"] == ("task", "layers", "embed", "mlp")


def test_batches_are_split_by_rows():
    with jax.set_mesh(make_mesh({"data": 2, "fsdp": 4})):
        batch = put_batch({"tokens": np.arange(32).reshape(8, 4)})
    assert {s.data.shape for s in batch["tokens"].addressable_shards} == {(1, 4)}
    with jax.set_mesh(make_mesh({"task": 4, "fsdp": 2})):
        batch = put_batch({"tokens": np.zeros((4, 2, 6))})
    assert {s.data.shape for s in batch["tokens"].addressable_shards} == {(1, 1, 6)}
