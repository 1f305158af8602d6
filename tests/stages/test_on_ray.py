"""Workers on Ray end in the bits of one process, and a failed one is named and started again."""

import sys

import pytest

from taskpgm.stages import on_ray
from tests.stages.launching import launch
from tests.stages.test_units import weights
from tests.stages.tiny_config import get_config


def test_what_failed_is_read_from_the_last_lines():
    said = ["runs  uniform: 6 steps", "     units  runs:uniform has failed", "error: loss is NaN"]
    assert on_ray.failure(said) == "units runs:uniform has failed; error: loss is NaN"
    assert on_ray.failure([]) == "without a word"


def test_a_worker_tells_its_code_and_last_lines():
    code, last = on_ray.work([sys.executable, "-c", "print('a'); print('b'); raise SystemExit(3)"])
    assert (code, last) == (3, ["a", "b"])


def test_without_ray_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"--ray=local: install it, by pip install '.\[ray\]'"):
        on_ray.run_on_ray("local", [], get_config().ray)


@pytest.mark.pipeline
def test_two_workers_on_ray_end_in_the_same_bits(finished, tasks_folder, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed")
    workdir, options = tmp_path / "run", [f"--config.tasks.source={tasks_folder}"]
    said = launch(workdir, *options, "--stage=runs", "--ray=local").stdout
    assert "worker 0 has nothing left to make" in said and "worker 1 has nothing" in said
    assert weights(workdir) == weights(finished)


@pytest.mark.pipeline
def test_a_unit_that_fails_is_named_and_tried_again(begun, tasks_folder):
    pytest.importorskip("ray", reason="ray is not installed")
    options = [
        f"--config.tasks.source={tasks_folder}",
        "--config.compare=('uniform',)",
        "--config.train.optimizer.lr=10",
        "--config.train.optimizer.clip=0.0",
        "--config.train.optimizer.weight_decay=1000",
        "--config.ray.workers=1",
        "--config.ray.retries=1",
    ]
    done = launch(begun, *options, "--ray=local", code=1)
    said = "worker 0 has failed 2 times: units runs:uniform has failed; error: "
    assert said in done.stderr
