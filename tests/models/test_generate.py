"""Decoding with a cache equals decoding by whole forward passes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.models import Decoder, attention, generate
from taskpgm.models.generate import _advance, bucket

PROMPTS = [[5, 9, 2], [1] * 3 + [60, 33, 7, 8, 21], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50]]


def greedy(config, variables, prompt, steps):
    """Without a cache: the whole sequence again for every token, at one padded length."""
    run = jax.jit(lambda x: Decoder(config).apply(variables, x))
    tokens = list(prompt)
    for _ in range(steps):
        row = np.zeros((1, 32), np.int32)
        row[0, : len(tokens)] = tokens
        tokens.append(int(jnp.argmax(run(row)[0, len(tokens) - 1])))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("family", ["mistral", "qwen2-mixed", "gpt2"])
def test_greedy_with_a_cache_is_greedy_without(tiny, randomized, with_lora, family):
    config, lora = with_lora(tiny(family))
    params = randomized(config)
    got = generate(config, params, PROMPTS, max_new_tokens=12, lora=lora)
    variables = {"params": params, "lora": lora}
    assert got == [greedy(config, variables, prompt, 12) for prompt in PROMPTS]


def test_long_prompts_are_read_in_blocks(tiny, randomized, with_lora, monkeypatch):
    config, lora = with_lora(tiny("mistral"))
    params = randomized(config)
    wanted = generate(config, params, PROMPTS, max_new_tokens=12, lora=lora)
    monkeypatch.setattr(attention, "BLOCK", 4)
    changed = dataclasses.replace(config, remat="full")  # compiled anew
    assert generate(changed, params, PROMPTS, max_new_tokens=12, lora=lora) == wanted


def test_stop_ids_end_a_row_and_are_left_out(tiny, randomized):
    config = tiny()
    params = randomized(config)
    free = generate(config, params, PROMPTS, max_new_tokens=12)
    stop = free[0][4]
    got = generate(config, params, PROMPTS, max_new_tokens=12, stop_ids=[stop, 63])
    for row, whole in zip(got, free, strict=True):
        ends = [i for i, token in enumerate(whole) if token in (stop, 63)]
        assert row == whole[: ends[0] if ends else 12]


def test_rows_that_somebody_calls_finished_are_not_continued(tiny, randomized):
    config = tiny()
    params = randomized(config)
    free = generate(config, params, PROMPTS, max_new_tokens=16)
    seen = []

    def finished(rows):
        seen.append([len(row) for row in rows])
        return [number == 1 for number, _ in enumerate(rows)]

    got = generate(config, params, PROMPTS, max_new_tokens=16, finished=finished)
    assert [len(row) for row in got] == [16, 8, 16]
    assert all(row == whole[: len(row)] for row, whole in zip(got, free, strict=True))
    assert seen[0] == [8, 8, 8] and seen[1] == [16, 8, 16] and len(seen) == 2
    calls = []
    got = generate(
        config, params, PROMPTS, max_new_tokens=16, finished=lambda r: calls.append(r) or [True] * 3
    )
    assert [len(row) for row in got] == [8, 8, 8] and len(calls) == 1


def test_sampling_follows_its_key_and_its_temperature(tiny, randomized):
    config = tiny()
    params = randomized(config)

    def run(seed, temperature):
        key = jax.random.key(seed)
        return generate(
            config, params, PROMPTS, max_new_tokens=12, temperature=temperature, key=key
        )

    assert run(0, 1.0) == run(0, 1.0) != run(1, 1.0)
    assert run(0, 1e-4) == generate(config, params, PROMPTS, max_new_tokens=12)


def test_few_programs_for_many_lengths(tiny, randomized):
    config = tiny()
    params = randomized(config)
    _advance.clear_cache()
    for length in (1, 2, 7, 12, 16):
        generate(config, params, [[3] * length] * 3, max_new_tokens=length, stop_ids=[2] * length)
    assert _advance._cache_size() == 1
    assert [bucket(n) for n in (0, 1, 16, 17, 32, 33)] == [16, 16, 16, 32, 32, 64]


def test_bad_input(tiny, randomized):
    config = tiny("gpt2")
    params = randomized(config)
    assert generate(config, params, [], max_new_tokens=4) == []
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        generate(config, params, [[1], []], max_new_tokens=4)
    with pytest.raises(ValueError, match="needs a key"):
        generate(config, params, [[1]], max_new_tokens=4, temperature=1.0)
    with pytest.raises(ValueError, match="exceed the model's 64 positions"):
        generate(config, params, [[1] * 60], max_new_tokens=5)
