"""One data set and one finished run for all tests of the stages."""

import functools
import shutil
from pathlib import Path

import pytest

import launch as launcher  # noqa: F401  # its settings of XLA are those of all tests here
from taskpgm.tasks import corpus
from tests.stages.launching import launch, write_tasks


@pytest.fixture(scope="session")
def tasks_folder(made_once) -> Path:
    return made_once("tasks", write_tasks)


@pytest.fixture(scope="session")
def finished(made_once, tasks_folder) -> Path:
    """The workdir of a whole, uninterrupted run. Tests that write into it do so in a copy."""
    source = f"--config.tasks.source={tasks_folder}"
    # As a user starts it: in a process of its own.
    return made_once("finished", lambda folder: launch(folder, source, forked=False))


@pytest.fixture
def begun(finished, tmp_path) -> Path:
    """A copy of its workdir from before the mixtures: with base, single-task models, affinities."""
    later = shutil.ignore_patterns("settings.json", "mixture", "runs", "evaluation", "report")
    return Path(shutil.copytree(finished, tmp_path / "run", ignore=later))


@pytest.fixture(scope="module")
def one_tokenizer():
    """The text of an embedded base is read once, and a tokenizer of it made once, for all runs in
    this process."""
    train_tokenizer = corpus.train_tokenizer
    made = functools.cache(lambda texts, size: train_tokenizer(texts, size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "documentation", functools.cache(corpus.documentation))
        patch.setattr(corpus, "train_tokenizer", lambda texts, size: made(tuple(texts), size))
        yield
