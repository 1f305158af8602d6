"""A signal ends evaluation, scoring and benchmarks between two pieces of work."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest

from taskpgm import interrupts
from taskpgm.evaluation import HarnessModel, evaluate, task_losses
from taskpgm.models import scoring

# The package's `generate` is the function.
generating = importlib.import_module("taskpgm.models.generate")


def losses(tiny):
    task_losses(tiny.config, tiny.params, tiny.tasks, tiny.rows, batch_size=1)


def answers(tiny):
    evaluate(
        tiny.config,
        tiny.params,
        tiny.tokenizer,
        tiny.tasks,
        tiny.rows,
        batch_size=2,
        max_new_tokens=3,
    )


def requests(tiny, kind, *args):
    model = HarnessModel(tiny.config, tiny.params, tiny.tokenizer, batch_size=2, max_new_tokens=3)
    getattr(model, kind)([SimpleNamespace(args=each) for each in args])


def likelihoods(tiny):
    long = [("say " * 60 + word, " two") for word in ("red", "green", "blue", "cat", "dog")]
    requests(tiny, "loglikelihood", ("say red", " blue"), *long)


def rolling(tiny):
    requests(tiny, "loglikelihood_rolling", ("say red then blue",))


def texts(tiny):
    requests(tiny, "generate_until", ("say red", {"until": ["."]}), ("say blue", {}))


WORK = (losses, answers, likelihoods, rolling, texts)


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
@pytest.mark.parametrize("code", [75, 130])
def test_it_ends_where_it_looks(tiny, monkeypatch, work, code):
    monkeypatch.setattr(interrupts, "exit_code", lambda: code)
    with pytest.raises(SystemExit) as end:
        work(tiny)
    assert end.value.code == code


@pytest.mark.parametrize(
    ("work", "module"),
    [(losses, scoring), (likelihoods, scoring), (answers, generating), (texts, generating)],
)
def test_it_looks_more_than_once(tiny, monkeypatch, work, module):
    """A signal that comes while it is at work is seen before the work is over."""
    looked = []
    monkeypatch.setattr(module, "end_if_asked", lambda: looked.append(1))
    work(tiny)
    assert len(looked) >= 2


def test_a_long_text_is_made_in_parts_that_are_the_same_text(tiny, monkeypatch):
    prompts = [[5, 6, 7], [9, 10]]
    make = generating.generate
    whole = make(tiny.config, tiny.params, prompts, max_new_tokens=20)
    monkeypatch.setattr(generating, "LOOK_EVERY", 3)
    parts = make(tiny.config, tiny.params, prompts, max_new_tokens=20)
    assert parts == whole and np.shape(parts) == (2, 20)
