"""Scoring against one model and one example at a time in float64."""

import numpy as np
import pytest

from taskpgm.models import scoring


@pytest.mark.parametrize("batch_size, chunk", [(1, 128), (2, 5), (8, 16)])
def test_log_likelihoods_equal_one_example_alone(world, batch_size, chunk):
    for examples, prompts, rows in world.tasks:
        got, tokens = scoring.score_examples(
            world.forward,
            world.shared,
            world.models,
            rows,
            len(examples),
            batch_size=batch_size,
            chunk=chunk,
        )
        want = [
            [world.log_likelihood_alone(i, *e) for e in zip(examples, prompts, strict=True)]
            for i in range(5)
        ]
        np.testing.assert_allclose(got, want, rtol=2e-6)
        assert tokens.tolist() == [len(e) - p for e, p in zip(examples, prompts, strict=True)]


def test_no_task_compiles_anew(world):
    scoring.target_log_probs.clear_cache()
    for examples, _, rows in world.tasks:
        scoring.score_examples(
            world.forward,
            world.shared,
            world.models,
            rows,
            len(examples),
            batch_size=2,
        )
    assert scoring.target_log_probs._cache_size() == 1


def test_results_come_one_item_ahead():
    """The next window is sent to the device before the result of this one is awaited."""
    asked = []

    def results():
        for k in range(4):
            asked.append(k)
            yield k

    seen = [(item, len(asked)) for item in scoring.one_behind(results())]
    assert seen == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(scoring.one_behind(iter(()))) == []


def test_scoring_dispatches_a_window_before_it_reads_the_last(world, monkeypatch):
    events = []

    def spied(name, function):
        def call(*args):
            events.append(name)
            return function(*args)

        return call

    compute, read = scoring.target_log_probs, scoring.to_host
    monkeypatch.setattr(scoring, "target_log_probs", spied("dispatched", compute))
    monkeypatch.setattr(scoring, "to_host", spied("read", read))
    examples, _, rows = world.tasks[0]
    scoring.score_examples(
        world.forward, world.shared, world.models, rows, len(examples), batch_size=1
    )
    count = events.count("dispatched")
    assert count > 1
    assert events == ["dispatched", *["dispatched", "read"] * (count - 1), "read"]
