"""Models that `jax.vmap` runs side by side never get cuDNN's attention; one alone does."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from taskpgm import training
from taskpgm.models import LoraConfig, attention, init_lora, init_params, scoring
from tests.tiny_decoder import TINY

CONFIG = dataclasses.replace(TINY, dtype="bfloat16", lora=LoraConfig(rank=2, alpha=4.0))
OPTIMIZER = training.make_optimizer({"lr": 1e-2})
ROWS, LENGTH = 2, 12


@pytest.fixture
def used(monkeypatch) -> list[str]:
    """The backends that are taken while a program is traced, on what plays an H100."""
    names: list[str] = []

    def note(name, inputs):
        names.append(name)
        return attention.reference(inputs)

    monkeypatch.setattr(attention, "_has_flash_attention", lambda: True)
    for name in attention.BACKENDS:
        monkeypatch.setitem(attention.BACKENDS, name, partial(note, name))
    return names


def packed(*group):
    """A batch of packed rows, two segments each."""
    shape = (*group, ROWS, LENGTH)
    ids = np.broadcast_to(np.repeat([1, 2], LENGTH // 2), shape).astype(np.int32)
    ints = {name: np.ones(shape, np.int32) for name in ("tokens", "targets", "positions")}
    return ints | {"weights": np.ones(shape, np.float32), "segment_ids": ids}


def zeros(shapes, *group):
    return jax.tree.map(lambda x: np.zeros((*group, *x.shape), x.dtype), shapes)


def adapters(*group):
    return zeros(jax.eval_shape(partial(init_lora, CONFIG), jax.random.key(0)), *group)


def base():
    return zeros(jax.eval_shape(partial(init_params, CONFIG), jax.random.key(0)))


def step(*group):
    state = training.create_state(OPTIMIZER, adapters(*group), group=bool(group))
    keys = jax.random.split(jax.random.key(1), group) if group else jax.random.key(1)
    made = training.make_train_step(CONFIG, OPTIMIZER, state)
    return made, (state, base(), packed(*group), keys, np.full(group, 3, np.int32))


def gradients():
    size = sum(x.size for x in jax.tree.leaves(adapters()))
    sketch = training.make_sketch(size, 64, seed=0)
    return partial(training.gradient_features, CONFIG), (adapters(), base(), packed(), sketch)


def scores():
    rows, where = packed(), np.arange(3, dtype=np.int32)
    inputs = (rows[name] for name in ("tokens", "positions", "segment_ids"))
    window = scoring.TargetWindow(*inputs, where, where, where, np.asarray(3, np.int32))
    forward = scoring.decoder_forward(CONFIG)
    return partial(scoring.hidden_states, forward), (base(), adapters(2), window)


def taken(used, program, inputs) -> set[str]:
    """The backends of a program alone; making its inputs takes some too."""
    used.clear()
    jax.eval_shape(program, *inputs)
    return set(used)


def test_one_model_takes_it_for_packed_rows(used):
    assert taken(used, *step()) == {"cudnn"}


@pytest.mark.parametrize(
    "made", [partial(step, 1), partial(step, 2), gradients, scores], ids="1 2 rows scores".split()
)
def test_many_take_the_reference(used, made):
    assert taken(used, *made()) == {"reference"}


def test_what_is_asked_for_by_name_stays():
    for name in ("reference", "splash"):
        config = dataclasses.replace(CONFIG, attention=name)
        assert config.side_by_side == config
