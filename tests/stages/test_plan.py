"""The plan counts what the run then does, says what would stop it, and refuses nothing."""

from collections import Counter
from importlib import import_module

import jax
import pytest

from taskpgm import stages, training
from taskpgm.affinity import pairwise
from taskpgm.evaluation import loglikelihood
from taskpgm.models import scoring
from taskpgm.stages import adapters, affinity, base, evaluation, runs
from taskpgm.stages.context import Context
from taskpgm.stages.devices import machine
from taskpgm.stages.estimate import Estimate
from tests.stages.launching import write_tasks
from tests.stages.tiny_config import get_config

pytestmark = pytest.mark.usefixtures("one_tokenizer")
generation = import_module("taskpgm.models.generate")  # the package has a function of that name
STAGES = {"base": base, "adapters": adapters, "affinity": affinity, "runs": runs}


def config_of(folder, **changes):
    config = get_config()
    config.tasks.source = str(folder)
    config.mesh.data = -1
    config.update_from_flattened_dict(changes)
    return config


# --- Counts --------------------------------------------------------------------------------------
def planned(config, workdir) -> Counter:
    """Positions of every stage, by plan, before anything is there."""
    context = Context(config, workdir, [], planning=True)
    estimate = Estimate(context, machine("cpu2"))
    found = Counter()
    for name, stage in STAGES.items():
        found[name] = sum(size_of(x.cost(estimate)) for x in stage.artefacts(context))
    for each in evaluation.artefacts(context):
        kind = "harness" if "benchmarks" in each.title else "evaluation"
        found[kind] += size_of(each.cost(estimate))
    return found


def size_of(cost) -> int:
    return cost.trained + cost.scored


class Counted:
    """Positions that programs are called with, by stage."""

    def __init__(self, monkeypatch):
        self.found = Counter()
        monkeypatch.setattr(training, "fit", self.fit(training.fit))
        for module in (pairwise, scoring, loglikelihood):
            monkeypatch.setattr(module, "hidden_states", self.hidden(module.hidden_states))
        self.now = ""
        for name, stage in (*STAGES.items(), ("evaluation", evaluation)):
            monkeypatch.setattr(stage, "artefacts", self.named(stage.artefacts, name))
        monkeypatch.setattr(generation, "_prefill", self.prefill(generation._prefill))
        monkeypatch.setattr(generation, "_advance", self.advance(generation._advance))

    def named(self, artefacts, name):
        def wrapped(context):
            for each in artefacts(context):
                self.now = "harness" if "benchmarks" in each.title else name
                yield each

        return wrapped

    def fit(self, real):
        def wrapped(step_fn, state, batches, **kwargs):
            def counted(k):
                batch = batches(k)
                self.found[self.now] += batch["tokens"].size
                return batch

            return real(step_fn, state, counted, **kwargs)

        return wrapped

    def hidden(self, real):
        def wrapped(forward, shared, models, window):
            group = jax.tree.leaves(models)[0].shape[0]
            self.found[self.now] += group * window.tokens.size
            return real(forward, shared, models, window)

        return wrapped

    def prefill(self, real):
        def wrapped(config, capacity, bound, tokens, segment_ids, draw):
            self.found[self.now] += tokens.size
            return real(config, capacity, bound, tokens, segment_ids, draw)

        return wrapped

    def advance(self, real):
        def wrapped(config, bound, state, stops, draw, until):
            before = int(state.step)
            state = real(config, bound, state, stops, draw, until)
            self.found[self.now] += (int(state.step) - before) * state.new.shape[0]
            return state

        return wrapped


# Each changes several stages, so that three runs have all that a stage counts in its own way.
VARIANTS = {
    "all answers": {
        "adapters.max_steps": 0,
        "compare": ("uniform",),
        "evaluation.exact_match_examples": 0,
        "evaluation.batch_size": 3,
    },
    "blocks, runs side by side": {
        "affinity.memory": 0.002,
        "affinity.batch_size": 3,
        "compare": ("uniform", "taskpgm-pmi", "taskpgm-jsd"),
        "train.group": 3,
        "train.mode": "lora",
        "train.accumulate": 2,
    },
    "whole models, pairs, seeds and steps": {
        "adapters.mode": "full",
        "adapters.group": 3,
        "adapters.epochs": 3.0,
        "affinity.contexts": "pair",
        "affinity.vocab_top_k": 16,
        "compare": ("uniform", "taskpgm-jsd"),
        "train.seeds": 2,
        "train.steps": 0,
    },
}


@pytest.mark.pipeline
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_plan_counts_what_the_run_does(changes, tmp_path, monkeypatch):
    """Rows filled up, whole batches, groups as long as their longest task: all of it."""
    data = write_tasks(tmp_path / "data", rows=40)
    config = config_of(data, **changes)
    config.tasks.length = 96  # in test_choosing.py it is 48
    config.mesh.data = 1
    config.mesh.task = -1
    for section in ("embedded", "adapters", "train"):
        config[section].checkpoint_every = 1000  # nobody goes on from there
    expected = planned(config, tmp_path / "run")
    counted = Counted(monkeypatch)
    stages.run(config, str(tmp_path / "run"), last="evaluation")
    found = counted.found
    for stage in ("base", "adapters", "affinity", "runs"):
        assert found[stage] == expected[stage] > 0, stage
    # Writing ends before `max_new_tokens` where every answer of a batch has ended.
    assert 0.7 * expected["evaluation"] <= found["evaluation"] <= expected["evaluation"]
