"""The benchmark on a real vocabulary: on a tiny model both of its sides find the same."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from taskpgm import models
from taskpgm.tasks import corpus
from tests.scripts import EXPERIMENTS, script

WORDS = "red green blue one two three north south east west cat dog bird fish".split()


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    with script(EXPERIMENTS / "real" / "bench_real.py") as module:
        yield module


def write_model(folder: Path) -> None:
    texts = [f"say {a} then {b}: {a} {b}." for a in WORDS for b in WORDS]
    tokenizer = corpus.train_tokenizer(texts, 400)
    config = models.DecoderConfig.from_hf(
        {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 256,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "initializer_range": 0.2,
        }
    )
    models.save_hf(folder, config, models.init_params(config, jax.random.key(0)))
    tokenizer.save_pretrained(folder)


def write_suite(folder: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names):
        rows = [
            {
                "prompt": f"say {WORDS[i % 14]} then {WORDS[(i + number) % 14]}: ",
                "response": " ".join(WORDS[i % 14 : i % 14 + 1 + i % 3]) + ".",
            }
            for i in range(200)
        ]
        path = folder / "suite" / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in (path, path.with_suffix(".heldout.jsonl")):
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.torch
@pytest.mark.slow
def test_both_sides_find_the_same(bench, tmp_path, monkeypatch):
    """Here a side has no process of its own: its command line is read in this one."""

    def run(command, **_):
        monkeypatch.setattr(sys, "argv", command[1:])
        bench.main()

    monkeypatch.setattr(bench, "subprocess", SimpleNamespace(run=run))
    pytest.importorskip("peft", reason="peft is not installed (optional extra: torch)")
    write_model(tmp_path / "model")
    write_suite(tmp_path, bench.TASKS[:2])
    found = bench.bench(tmp_path / "model", tmp_path, n=2, steps=3, rows=8)
    for what in ("training", "log-likelihoods, n x n", "loss of a model"):
        assert found[what]["apart"] < 1e-3, what
    assert found["answers, greedy"]["same"] == 1
    assert found["with JSD, n x n"]["tokens"] == found["log-likelihoods, n x n"]["tokens"] > 0
    table = bench.table({"machine": {"command": "it"}, "result": found})
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 5 and len({row.count("|") for row in rows}) == 1
