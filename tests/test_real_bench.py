"""The benchmark on a real vocabulary: on a tiny model both of its sides find the same."""

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from taskpgm import models
from taskpgm.tasks import corpus

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
WORDS = "red green blue one two three north south east west cat dog bird fish".split()
MODULES = ("bench_real", "bench_ours", "bench_theirs", "record")


@pytest.fixture
def script(monkeypatch):
    """bench_real.py as a module; it and its neighbours are gone again afterwards."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS / "real"))
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("XLA_FLAGS", "")
    yield importlib.import_module("bench_real")
    for name in MODULES:
        sys.modules.pop(name, None)


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
def test_both_sides_find_the_same(script, tmp_path, monkeypatch):
    """Here a side has no process of its own: its command line is read in this one."""

    def run(command, **_):
        monkeypatch.setattr(sys, "argv", command[1:])
        script.main()

    monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=run))
    pytest.importorskip("peft", reason="peft is not installed (optional extra: torch)")
    write_model(tmp_path / "model")
    write_suite(tmp_path, script.TASKS[:2])
    found = script.bench(tmp_path / "model", tmp_path, n=2, steps=3, rows=8)
    for what in ("training", "log-likelihoods, n x n", "loss of a model"):
        assert found[what]["apart"] < 1e-3, what
    assert found["answers, greedy"]["same"] == 1
    assert found["with JSD, n x n"]["tokens"] == found["log-likelihoods, n x n"]["tokens"] > 0
    table = script.table({"machine": {"command": "it"}, "result": found})
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 5 and len({row.count("|") for row in rows}) == 1
