"""One data set and one finished run for all tests of the stages."""

from pathlib import Path

import pytest

from tests.stages.launching import launch, write_tasks


@pytest.fixture(scope="session")
def tasks_folder(tmp_path_factory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def finished(tasks_folder, tmp_path_factory) -> Path:
    """The workdir of a whole, uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    launch(workdir, f"--config.tasks.source={tasks_folder}")
    return workdir
