"""A stand-in for the decoder: no attention, but every part that scoring relies on."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.models.scoring import Forward
from taskpgm.tasks import Rows


def pack(examples, prompts, length):
    """First-fit packing of id lists into rows; example e scores everything after its prompt."""
    used, place = [], []
    for ids in examples:
        row = next((r for r, u in enumerate(used) if u + len(ids) <= length), len(used))
        if row == len(used):
            used.append(0)
        place.append((row, used[row]))
        used[row] += len(ids)
    shape = (len(used), length)
    rows = Rows(*(np.zeros(shape, np.int32) for _ in range(6)))
    rows = rows._replace(weights=np.zeros(shape, np.float32), example=np.full(shape, -1, np.int32))
    seen = {}
    for e, (row, start) in enumerate(place):
        ids, at = np.asarray(examples[e]), slice(start, start + len(examples[e]))
        seen[row] = seen.get(row, 0) + 1
        rows.tokens[row, at], rows.segment_ids[row, at] = ids, seen[row]
        rows.positions[row, at], rows.example[row, at] = np.arange(len(ids)), e
        rows.targets[row, at] = np.append(ids[1:], 0)
        rows.weights[row, start + prompts[e] - 1 : start + len(ids) - 1] = 1.0
    return rows


def _hidden(shared, own, tokens, positions, segment_ids):
    x = shared["embed"][tokens] + 0.1 * jnp.sin(positions + 0.0)[..., None]
    return jnp.tanh(x + x @ own["a"] @ own["b"])


FORWARD = Forward(_hidden, lambda shared, own: shared["head"], True)


class World(NamedTuple):
    """Three tasks of packed rows and five low-rank models of one base."""

    shared: dict
    models: dict
    tasks: list  # of (examples, prompts, rows)
    forward: Forward = FORWARD

    def log_probs_alone(self, i, ids):
        """float64 numpy: model i on one example by itself, [len, v]."""
        x = self.shared["embed"][ids].astype(np.float64)
        x = x + 0.1 * np.sin(np.arange(len(ids)))[:, None]
        x = np.tanh(x + x @ self.models["a"][i] @ self.models["b"][i]) @ self.shared["head"]
        x = x - x.max(-1, keepdims=True)
        return x - np.log(np.exp(x).sum(-1, keepdims=True))

    def log_likelihood_alone(self, i, ids, prompt):
        at = np.arange(prompt - 1, len(ids) - 1)
        return self.log_probs_alone(i, ids)[at, np.asarray(ids)[at + 1]].sum()

    def divergence_alone(self, i, j, ids, prompt):
        """Mean JSD of models i and j over the response positions of one example."""
        p, q = (np.exp(self.log_probs_alone(k, ids)[prompt - 1 : -1]) for k in (i, j))
        m = 0.5 * (p + q)
        return (0.5 * (p * np.log(p / m) + q * np.log(q / m))).sum(-1).mean()


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    vocab, width, n = 37, 16, 5
    tasks = []
    for count in (7, 3, 5):
        examples = [rng.integers(1, vocab, rng.integers(4, 12)) for _ in range(count)]
        prompts = [int(rng.integers(1, len(ids) - 1)) for ids in examples]
        tasks.append((examples, prompts, pack(examples, prompts, 24)))
    shared = {
        "embed": rng.normal(size=(vocab, width)).astype(np.float32),
        "head": rng.normal(size=(width, vocab)).astype(np.float32),
    }
    models = {
        "a": rng.normal(size=(n, width, 2)).astype(np.float32),
        "b": (0.5 * rng.normal(size=(n, 2, width))).astype(np.float32),
    }
    return World(shared, models, tasks)
