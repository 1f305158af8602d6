"""A tiny untrained model with a tokenizer of its own, and three tasks."""

import importlib
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from taskpgm.models import Decoder, DecoderConfig, init_params
from taskpgm.tasks import Example, Task, corpus, encode, pack

WORDS = "red green blue one two three north south east west cat dog bird fish".split()
LENGTH = 48
SEED = jax.random.key(0)


@pytest.fixture(scope="module", autouse=True)
def one_bucket():
    """Prompts of all these tests are padded to one length: few programs are compiled."""
    generating = importlib.import_module("taskpgm.models.generate")  # not the package's function
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generating, "SMALLEST_BUCKET", 64)
        yield


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    texts = [f"say {a} then {b}: {a} {b}." for a in WORDS for b in WORDS]
    tokenizer = corpus.train_tokenizer(texts, 400)
    config = DecoderConfig.from_hf(
        {
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        }
    )
    rng, shapes = np.random.default_rng(0), jax.eval_shape(partial(init_params, config), SEED)
    params = jax.tree_util.tree_map_with_path(  # by numpy: compiling jax.random takes seconds
        lambda path, x: (
            np.float32(0.02) * rng.normal(size=x.shape).astype(np.float32)
            + np.float32(path[-1].key == "scale")
        ),
        shapes,
    )

    def task(name: str, family: str, count: int, step: int) -> Task:
        examples = tuple(
            Example(f"say {WORDS[i % 14]} then {WORDS[step * i % 14]}: ", f"{WORDS[i % 14]}.")
            for i in range(count)
        )
        return Task(name, family, examples, examples[:1], examples)

    tasks = [task("first", "f", 5, 1), task("second", "f", 9, 3), task("third", "g", 3, 5)]
    rows = [pack(encode(tokenizer, t.test, LENGTH), LENGTH) for t in tasks]

    @jax.jit
    def table(ids):
        return jax.nn.log_softmax(Decoder(config).apply({"params": params}, ids))

    def log_probs(ids) -> np.ndarray:
        """log p(. | ids[: i + 1]) at each i, from the full logits of one text, padded behind it."""
        padded = np.pad(np.asarray(ids), (0, config.max_position - len(ids)))
        return np.asarray(table(padded[None]), np.float64)[0, : len(ids)]

    return SimpleNamespace(
        tokenizer=tokenizer,
        config=config,
        params=params,
        tasks=tasks,
        rows=rows,
        length=LENGTH,
        log_probs=log_probs,
    )
