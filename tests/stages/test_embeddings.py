"""Task embeddings: the mean of the base's last hidden states over prompts' tokens."""

import json
from functools import partial

import jax
import numpy as np
import pytest

from taskpgm.models import Decoder, DecoderConfig, init_params
from taskpgm.stages.embeddings import embed_prompts, prompt_positions, read_embeddings
from taskpgm.tasks import Encoded, pack

from .launching import launch

CONFIG = DecoderConfig("llama", 64, 16, 24, 2, 2, 1, 8, 32)
PROMPTS, ANSWERS = (3, 1, 0, 6, 2), (2, 4, 3, 1, 1)


def encoded() -> Encoded:
    rng = np.random.default_rng(0)
    ids = [
        rng.integers(1, 64, p + a).astype(np.int32) for p, a in zip(PROMPTS, ANSWERS, strict=True)
    ]
    scored = [np.arange(p + a) >= p for p, a in zip(PROMPTS, ANSWERS, strict=True)]
    return Encoded(ids, scored, np.arange(5, dtype=np.int32), 0, 0)


def test_each_prompt_is_the_mean_of_its_hidden_states_alone():
    params = jax.jit(partial(init_params, CONFIG))(jax.random.key(0))
    said = encoded()
    found = embed_prompts(CONFIG, params, pack(said, 12), batch_size=2)
    forward = jax.jit(partial(Decoder(CONFIG).apply, method="hidden"))
    expected = []
    for ids, count in zip(said.ids, PROMPTS, strict=True):
        alone = np.pad(ids, (0, 12 - len(ids)))[None]  # what follows is not seen
        hidden = forward({"params": params}, alone)
        expected.append(np.asarray(hidden, np.float64)[0, : max(1, count)].mean(0))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_what_is_scored_or_padding_is_no_prompt():
    rows = pack(encoded(), 12)
    assert prompt_positions(rows).sum() == sum(PROMPTS) + 1  # a first token, which nothing predicts


@pytest.mark.pipeline
def test_rows_of_embeddings_from_a_config(begun, tasks_folder):
    workdir = begun
    options = (
        f"--config.tasks.source={tasks_folder}",
        "--config.compare=('smart','chameleon','mixmin','clustered-pmi','graph-laplacian-pmi')",
        "--stage=mixture",
    )
    assert "embeddings" in launch(workdir, *options, "--dry_run").stdout
    said = launch(workdir, *options).stdout
    assert "embeddings  of 4 tasks" in said
    weights = json.loads((workdir / "mixture" / "weights.json").read_text())
    assert set(weights["mixtures"]) == {
        "smart",
        "chameleon",
        "mixmin",
        "clustered-pmi",
        "graph-laplacian-pmi",
    }
    for mixture in weights["mixtures"].values():
        assert abs(sum(mixture["weights"]) - 1) < 1e-9 and sum(mixture["counts"]) == 24
    # What was killed half-way keeps what it has, and ends with the same bits.
    first = read_embeddings(workdir, weights["tasks"])
    kept = workdir / "embeddings" / "upper.npz"
    before = kept.stat().st_mtime_ns
    (workdir / "embeddings" / "done.json").unlink()
    (workdir / "embeddings" / "shout.npz").unlink()
    launch(workdir, *options)
    assert kept.stat().st_mtime_ns == before
    again = read_embeddings(workdir, weights["tasks"])
    np.testing.assert_array_equal(first["embeddings"], again["embeddings"])
    # A damaged file is named, with the way out.
    kept.write_bytes(b"PK")
    (workdir / "mixture" / "done.json").unlink()
    told = launch(workdir, *options, code=1)
    assert f"{kept} is damaged" in told.stderr and "remove" in told.stderr
