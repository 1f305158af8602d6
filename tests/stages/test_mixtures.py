"""Every row of the table of mixtures, on one small affinity."""

from types import SimpleNamespace

import numpy as np
import pytest

from taskpgm import mixture
from taskpgm.stages import default_config
from taskpgm.stages.mixtures import MIXTURES, Inputs, caps, check, make


@pytest.fixture
def inputs():
    noise = np.random.default_rng(0).normal(size=(5, 5))
    size = np.array([10, 20, 30, 40, 100])
    config = default_config().mixture.to_dict() | {"budget": 60, "max_epochs": 1.0}
    S = noise @ noise.T
    return Inputs({"pmi": S, "jsd": S}, {}, size, caps(size, 60, 1.0), config, 0)


@pytest.mark.parametrize("name", MIXTURES)
def test_it_is_a_mixture(name, inputs):
    made = make(name, inputs)
    weights = np.asarray(made.weights if isinstance(made, mixture.Solution) else made)
    assert weights.shape == (5,)
    assert weights.min() >= 0 and abs(weights.sum() - 1) < 1e-9


def test_caps_hold_what_a_task_has(inputs):
    weights = make("taskpgm-pmi", inputs).weights
    assert (weights * 60 <= inputs.sizes + 1e-6).all()


def test_a_permuted_affinity_gives_another_mixture(inputs):
    assert not np.allclose(make("permuted-pmi", inputs), make("taskpgm-pmi", inputs).weights)


def test_a_budget_beyond_the_data_is_refused():
    with pytest.raises(ValueError, match="mixture.budget=201 is larger than the data allow: 200"):
        caps(np.array([100, 100]), 201, 1.0)


def test_an_empty_comparison_is_refused():
    section = SimpleNamespace(method="exact", budget=1, max_epochs=1.0)
    with pytest.raises(ValueError, match="compare is empty"):
        check(SimpleNamespace(compare=(), mixture=section), None)
