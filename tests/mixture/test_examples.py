"""The examples in the docstrings run, and every public function has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import taskpgm.mixture
from taskpgm.mixture import baselines

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(taskpgm.mixture.__path__, "taskpgm.mixture.")
)
# Parts that others are made of; what uses them has the example.
PARTS = {"Explanation", "explain", "Path", "Resampled", "Selection", "Solution"}
PARTS |= {"linkage", "ChosenRatio", "choose_ratio"}
PARTS |= {"Greedy", "cosine_similarity", "facility_location", "graph_cut", "permuted_affinity"}
PARTS |= {"dirichlet_mixtures", "doremi_update", "excess_loss"}


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_print_what_they_say(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


@pytest.mark.parametrize("package", [taskpgm.mixture, baselines])
def test_every_public_name_has_an_example(package):
    for name in set(package.__all__) - PARTS:
        value = getattr(package, name)
        text = inspect.getdoc(value) or ""
        methods = [inspect.getdoc(m) or "" for _, m in inspect.getmembers(value)]
        assert ">>>" in text or (inspect.isclass(value) and any(">>>" in m for m in methods)), name
