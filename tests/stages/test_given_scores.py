"""Losses and log-likelihoods that people bring, targets among them, and training that follows."""

import json
import math
import shutil

import numpy as np
import pytest

from taskpgm.stages.given_scores import load_likelihoods, load_losses

from .launching import ANSWERS, ROOT, launch

LN2 = math.log(2)
CONFIG = ROOT / "configs" / "mix_from_affinity.py"


def results(**losses):
    """As lm_eval writes them."""
    told = {
        task: {"alias": task, "bits_per_byte,none": loss / LN2, "bits_per_byte_stderr,none": "N/A"}
        for task, loss in losses.items()
    }
    return {"results": told | {"group": {"alias": "group"}}, "config": {"model": "hf"}}


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


LAYOUTS = {
    "by file": ("results_a.json", "results_b.json", "results_base.json"),
    "by folder": ("a/results.json", "b/results.json", "base/results.json"),
    "as lm_eval writes": (
        "__runs__a/results_2026-01-02T03-04-05.678901.json",
        "__runs__b/results_2026-01-02T03-04-05.678901.json",
        "some-org__base/results_2026-01-02T03-04-05.678901.json",
    ),
    "nested": (
        "a/some__model/results_2026-01-02.json",
        "b/some__model/results_2026-01-02.json",
        "base/some__model/results_2026-01-02.json",
    ),
}


@pytest.mark.parametrize("files", LAYOUTS.values(), ids=LAYOUTS)
def test_results_of_the_harness_are_losses(tmp_path, files):
    rows = (
        {"a": 0.5, "b": 1.5, "t": 1.0},
        {"a": 1.8, "b": 0.6, "t": 0.9},
        {"a": 2, "b": 3, "t": 2},
    )
    for file, row in zip(files, rows, strict=True):
        write(tmp_path / file, results(**row))
    names, scores = load_losses(tmp_path)
    assert names.mixed == ["a", "b"] and names.targets == ["t"]
    np.testing.assert_allclose(-scores.log_likelihood, [[0.5, 1.5, 1.0], [1.8, 0.6, 0.9]])
    np.testing.assert_allclose(-scores.base, [2, 3, 2])


@pytest.mark.parametrize("metric", ["bits_per_byte", "byte_perplexity", "word_perplexity"])
def test_every_likelihood_of_the_harness_becomes_nats(tmp_path, metric):
    for name, row in {"a": (0.5, 1.5), "b": (1.8, 0.6)}.items():
        told = [x / LN2 if metric == "bits_per_byte" else math.exp(x) for x in row]
        value = {task: {f"{metric},none": x} for task, x in zip("ab", told, strict=True)}
        write(tmp_path / f"results_{name}.json", {"results": value})
    _, scores = load_losses(tmp_path)
    np.testing.assert_allclose(-scores.log_likelihood, [[0.5, 1.5], [1.8, 0.6]])


@pytest.mark.parametrize(
    "files, said",
    [
        ({}, "no results_"),
        ({"results_a.json": "{"}, "results_a.json: not results"),
        ({"results_a.json": {"configs": {}}}, "not results of lm-evaluation-harness"),
        ({"results_a.json": {"results": {"a": 3}}}, "not results of lm-evaluation-harness"),
        ({"results_a.json": {"results": {"a": {"acc,none": 0.5}}}}, "no likelihood among acc"),
        ({"results_a.json": results(a=1), "results_b.json": results(a=1, b=2)}, "no result of 'b'"),
        ({"results_c.json": results(a=1, b=2)}, "which task's model is it"),
        (
            {"results_a.json": results(a=1, b=2), "a/results.json": results(a=1, b=2)},
            "both results of 'a'",
        ),
    ],
)
def test_results_that_do_not_fit_are_refused_by_file(tmp_path, files, said):
    for name, value in files.items():
        write(tmp_path / name, value)
    with pytest.raises(ValueError, match=said) as refused:
        load_losses(tmp_path)
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


TABLE = {
    "csv": "model,a,t,b\nb,1.8,0.9,0.6\nbase,2,2,3\na,0.5,1.0,1.5\n",
    "tsv": "model\ta\tt\tb\nb\t1.8\t0.9\t0.6\nbase\t2\t2\t3\na\t0.5\t1.0\t1.5\n",
}


@pytest.mark.parametrize("ending", ["csv", "tsv", "npz"])
def test_columns_without_a_row_are_targets(tmp_path, ending):
    path = tmp_path / f"L.{ending}"
    if ending == "npz":
        values = [[1.8, 0.9, 0.6], [2, 2, 3], [0.5, 1.0, 1.5]]
        np.savez(path, losses=values, models=["b", "base", "a"], tasks=["a", "t", "b"])
    else:
        path.write_text(TABLE[ending])
    names, scores = load_losses(path)
    assert names.mixed == ["a", "b"] and names.targets == ["t"]
    np.testing.assert_allclose(-scores.log_likelihood, [[0.5, 1.5, 1.0], [1.8, 0.6, 0.9]])
    np.testing.assert_allclose(-scores.base, [2, 3, 2])


def test_tables_that_do_not_fit_are_refused(tmp_path):
    for text, said in (
        ("a,b,c\n1,2,3\n1,2,3\n", "targets where rows have names"),
        ("model,a,b\na,1,2\nc,1,2\n", "row 'c' is not the name of a column"),
        ("model,a,b\na,1,2\na,1,2\n", "2 tasks need as many different names"),
        ("model,a,b\na,1,-2\nb,1,2\n", "a mean loss is positive"),
        ("a,b\n1,2\n1,2\n1,2\n1,2\n", "shape"),
    ):
        (tmp_path / "L.csv").write_text(text)
        with pytest.raises(ValueError, match=said):
            load_losses(tmp_path / "L.csv")


def test_likelihoods_of_targets_and_what_does_not_fit(tmp_path):
    path, values = tmp_path / "l.npz", -np.array([[1.0, 2, 3, 1], [2, 4, 1, 2]])
    np.savez(path, log_likelihood=values, task=[0, 0, 1, 2], tasks=["a", "b", "t"])
    names, scores = load_likelihoods(path)
    assert names == (["a", "b"], ["t"]) and scores.num_tasks == 3
    for change, said in (
        ({"task": [1, 1, 2, 2]}, "counts tasks from 0"),
        ({"task": [-1, 0, 1, 1]}, "counts tasks from 0"),
        ({"task": [0, 0, 0, 0]}, "each has an example"),
        ({"task": [0.0, 0, 1, 1]}, "a whole number for each"),
        ({"base": [1.0]}, "base is one number for each of 4"),
        ({"tokens": [0, 1, 1, 1]}, "or no count"),
        ({"log_likelihood": np.where(values < -3, np.nan, values)}, "no finite number"),
    ):
        np.savez(path, **{"log_likelihood": values, "task": [0, 0, 1, 1], **change})
        with pytest.raises(ValueError, match=said):
            load_likelihoods(path)


@pytest.mark.pipeline
def test_from_results_of_the_harness_to_weights_for_targets(tmp_path):
    loss = {"a": 1.0, "b": 1.0, "t": 1.0}
    for name, row in {
        "a": loss | {"a": 0.3, "t": 0.5},
        "b": loss | {"b": 0.3},
        "base": {"a": 1.1, "b": 1.1, "t": 1.1},
    }.items():
        write(tmp_path / "evals" / f"results_{name}.json", results(**row))
    options = (
        f"--config.affinity.matrix={tmp_path / 'evals'}",
        "--config.affinity.kind=loss",
        "--config.mixture.ratio=auto",
        "--config.mixture.importance=targets",
        "--config.compare=('uniform', 'taskpgm-transfer', 'taskpgm-predicted')",
    )
    launch(tmp_path / "run", *options, config=CONFIG)
    made = json.loads((tmp_path / "run" / "mixture" / "weights.json").read_text())
    assert made["tasks"] == ["a", "b"] and made["targets"] == ["t"]
    # Only a's model helps on the target, the only thing that matters.
    for name in ("taskpgm-transfer", "taskpgm-predicted"):
        assert made["mixtures"][name]["weights"][0] > 0.6
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "Targets stand at the right of the line" in page


@pytest.mark.pipeline
def test_with_the_tasks_a_matrix_goes_on_to_train(finished, tasks_folder, tmp_path):
    later = ("adapters", "affinity", "mixture", "runs", "evaluation", "report", "settings.json")
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns(*later))
    names = sorted(ANSWERS, reverse=True)  # in another order than the tasks'
    loss = 2.0 - np.eye(4) - 0.1 * np.random.default_rng(0).random((4, 4))
    lines = [["model", *names]]
    lines += [[name, *map(str, row)] for name, row in zip(names, loss, strict=True)]
    (tmp_path / "L.csv").write_text("\n".join(map(",".join, lines)))
    options = (
        f"--config.affinity.matrix={tmp_path / 'L.csv'}",
        "--config.affinity.kind=loss",
        f"--config.tasks.source={tasks_folder}",
    )
    compare = "--config.compare=('taskpgm-pmi', 'taskpgm-predicted')"
    short = ("train.steps=1", "evaluation.exact_match_examples=1", "evaluation.max_new_tokens=1")
    short = [f"--config.{setting}" for setting in short]
    launch(tmp_path / "run", *options, compare, *short, "--stage=evaluation")
    assert not (tmp_path / "run" / "adapters").exists()
    trained = {path.parts[-3] for path in tmp_path.glob("run/runs/*/hf/model.safetensors")}
    judged = json.loads((tmp_path / "run" / "evaluation" / "results.json").read_text())["runs"]
    assert trained == set(judged) == {"taskpgm-pmi", "taskpgm-predicted"}
    made = json.loads((tmp_path / "run" / "mixture" / "weights.json").read_text())
    assert made["tasks"] == sorted(ANSWERS) and made["sizes"]
    stored = np.load(tmp_path / "run" / "affinity" / "transfer.npz")["loss"]
    order = [names.index(name) for name in sorted(ANSWERS)]
    np.testing.assert_allclose(stored, loss[np.ix_(order, order)])
    text = (tmp_path / "L.csv").read_text().replace("upper", "lower")
    (tmp_path / "L.csv").write_text(text)
    refused = launch(tmp_path / "other", *options, compare, code=1)
    assert "'upper' is a task of tasks.source" in refused.stderr
    assert refused.stderr.count("\n") == 1
