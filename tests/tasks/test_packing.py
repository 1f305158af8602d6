"""Packing: every example whole, once, in order of first fit, and blind to its neighbours."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskpgm.models import Decoder, init_params
from taskpgm.tasks import Encoded, encode, pack
from taskpgm.tasks import packing as packing_module
from tests.tiny_decoder import TINY


def encoded_of(lengths, seed=0, vocab=50):
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, vocab, length).astype(np.int32) for length in lengths]
    scored = [np.r_[False, rng.random(length - 1) < 0.6] for length in lengths]
    return Encoded(ids, scored, np.arange(len(lengths), dtype=np.int32), 0, 0)


def segments(rows):
    """(row, begin, end, example) of every segment, found from `example` alone."""
    for row, examples in enumerate(rows.example):
        for example in dict.fromkeys(examples[examples >= 0].tolist()):
            places = np.flatnonzero(examples == example)
            assert (np.diff(places) == 1).all()
            yield row, places[0], places[-1] + 1, example


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 16), min_size=1, max_size=40), st.integers(16, 40))
def test_every_example_is_whole_and_once_and_fields_agree(lengths, length):
    encoded = encoded_of(lengths)
    rows = pack(encoded, length)
    assert sorted(example for *_, example in segments(rows)) == list(range(len(lengths)))
    for row, begin, end, example in segments(rows):
        at = np.s_[row, begin:end]
        ids, scored = encoded.ids[example], encoded.scored[example]
        assert rows.tokens[at].tolist() == ids.tolist()
        assert rows.positions[at].tolist() == list(range(len(ids)))
        assert len(set(rows.segment_ids[at])) == 1 and rows.segment_ids[row, begin] > 0
        assert rows.targets[at].tolist() == [*ids[1:], 0]
        assert rows.weights[at].tolist() == [*scored[1:], 0]
    padding = rows.segment_ids == 0
    for field, value in zip(rows, (0, 0, 0, 0, 0, -1), strict=True):
        assert (field[padding] == value).all() and field.shape == rows.tokens.shape
    # Segments of a row are numbered 1, 2, ... from the left, and padding only comes after them.
    for ids in rows.segment_ids:
        filled = ids[ids > 0]
        assert (ids[: len(filled)] > 0).all()
        assert list(dict.fromkeys(filled.tolist())) == list(range(1, filled.max() + 1))
    assert rows.weights.sum() == sum(scored.sum() for scored in encoded.scored)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 10), max_size=50))
def test_first_fit_leaves_no_two_rows_that_fit_in_one(sizes):
    groups = packing_module.first_fit(sizes, 10)
    loads = [sum(sizes[i] for i in group) for group in groups]
    assert all(a + b > 10 for i, a in enumerate(loads) for b in loads[i + 1 :])
    assert all(group == sorted(group) for group in groups)
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)


def test_an_example_never_goes_far_back(monkeypatch):
    monkeypatch.setattr(packing_module, "OPEN_ROWS", 2)
    assert packing_module.first_fit([5, 8, 8, 5], 10) == [[0], [1], [2], [3]]
    monkeypatch.setattr(packing_module, "OPEN_ROWS", 3)
    assert packing_module.first_fit([5, 8, 8, 5], 10) == [[0, 3], [1], [2]]


def test_an_example_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="example 1 has 9 tokens: rows hold 1 to 8"):
        pack(encoded_of([3, 9]), 8)
    assert pack(encoded_of([]), 8).tokens.shape == (0, 8)


def test_packing_is_dense(suite, tokenizer):
    encoded = encode(tokenizer, suite[0].train, 64)
    assert (pack(encoded, 256).segment_ids > 0).mean() > 0.9


def test_no_token_sees_another_segment():
    """A decoder gives a packed example the logits of the example alone, and not one bit of them
    changes when the tokens of other examples change."""
    params = init_params(TINY, jax.random.key(0))

    @jax.jit
    def logits(tokens, positions, segment_ids):
        return Decoder(TINY).apply(
            {"params": params}, tokens, positions=positions, segment_ids=segment_ids
        )

    encoded = encoded_of([7, 12, 5, 9, 16])
    rows = pack(encoded, 24)
    assert max(rows.segment_ids.max(axis=1)) > 1
    packed = np.asarray(logits(rows.tokens, rows.positions, rows.segment_ids))
    for row, begin, end, example in segments(rows):
        alone, places = np.zeros_like(rows.tokens), np.zeros_like(rows.tokens) + np.arange(24)
        alone[0, : end - begin] = encoded.ids[example]
        single = np.asarray(logits(alone, places, (places < end - begin) + 0))
        np.testing.assert_allclose(packed[row, begin:end], single[0, : end - begin], atol=2e-5)
        others = (rows.example != example).astype(np.int32)
        changed = logits((rows.tokens + others) % 50, rows.positions, rows.segment_ids)
        assert (np.asarray(changed)[row, begin:end] == packed[row, begin:end]).all()
