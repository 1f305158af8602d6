"""Scoring against one model and one example at a time in float64."""

import numpy as np
import pytest

from taskpgm.affinity import predict


@pytest.mark.parametrize("batch_size, chunk", [(1, 128), (2, 5), (8, 16)])
def test_log_likelihoods_equal_one_example_alone(world, batch_size, chunk):
    for examples, prompts, rows in world.tasks:
        got, tokens = predict.score_examples(
            None,
            world.shared,
            world.models,
            rows,
            len(examples),
            batch_size=batch_size,
            chunk=chunk,
            forward=world.forward,
        )
        want = [
            [world.log_likelihood_alone(i, *e) for e in zip(examples, prompts, strict=True)]
            for i in range(5)
        ]
        np.testing.assert_allclose(got, want, rtol=2e-6)
        assert tokens.tolist() == [len(e) - p for e, p in zip(examples, prompts, strict=True)]


def test_no_task_compiles_anew(world):
    predict._target_log_probs.clear_cache()
    for examples, _, rows in world.tasks:
        predict.score_examples(
            None,
            world.shared,
            world.models,
            rows,
            len(examples),
            batch_size=2,
            forward=world.forward,
        )
    assert predict._target_log_probs._cache_size() == 1


def test_late_is_one_item_ahead():
    """The device has the next window before the result of this one is waited for."""
    asked = []

    def results():
        for k in range(4):
            asked.append(k)
            yield k

    seen = [(item, len(asked)) for item in predict.late(results())]
    assert seen == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(predict.late(iter(()))) == []


def test_scoring_dispatches_a_window_before_it_reads_the_last(world, monkeypatch):
    events = []

    def spied(name, function):
        def call(*args):
            events.append(name)
            return function(*args)

        return call

    compute, read = predict._target_log_probs, predict.to_host
    monkeypatch.setattr(predict, "_target_log_probs", spied("dispatched", compute))
    monkeypatch.setattr(predict, "to_host", spied("read", read))
    examples, _, rows = world.tasks[0]
    predict.score_examples(
        None, world.shared, world.models, rows, len(examples), batch_size=1, forward=world.forward
    )
    count = events.count("dispatched")
    assert count > 1
    assert events == ["dispatched", *["dispatched", "read"] * (count - 1), "read"]
