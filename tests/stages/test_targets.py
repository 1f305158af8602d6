"""Targets: tasks that are judged and not mixed, from a folder to the page."""

import json

import numpy as np
import pytest

from .launching import launch


def write_target(folder, name, split, rows=8):
    folder.mkdir(parents=True, exist_ok=True)
    ending = f".{split}" if split else ""
    lines = [
        json.dumps({"prompt": f"{name} {split} {i}: ", "response": str(i)}) for i in range(rows)
    ]
    (folder / f"{name}{ending}.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.pipeline
def test_targets_decide_and_judge_and_are_never_mixed(begun, tasks_folder, tmp_path):
    targets = tmp_path / "targets"
    write_target(targets, "count", "")
    write_target(targets, "sum", "heldout")
    write_target(targets, "sum", "test")
    workdir = begun
    options = (
        f"--config.tasks.source={tasks_folder}",
        "--config.mixture.ratio=auto",
        "--config.compare=('uniform', 'taskpgm-pmi', 'taskpgm-jsd', 'taskpgm-transfer', "
        "'taskpgm-predicted', 'select-pmi:k=3')",
    )
    told = launch(
        workdir,
        *options,
        f"--config.tasks.targets={targets}",
        "--config.mixture.importance=targets",
    )
    # What exists stays: only the targets' cells are computed, and no single-task model is trained.
    assert "8 of 24 cells computed" in told.stdout
    listed = json.loads((workdir / "tasks.json").read_text())["tasks"]
    assert [t["name"] for t in listed if t["target"]] == ["count", "sum"]
    assert all(t["train"] == 0 for t in listed if t["target"])
    n = sum(not t["target"] for t in listed)

    pmi, jsd = (np.load(workdir / "affinity" / f"{kind}.npz") for kind in ("pmi", "jsd"))
    assert pmi["affinity"].shape == (n, n) and pmi["relevance"].shape == (n, 2)
    assert list(pmi["targets"]) == ["count", "sum"] and (pmi["relevance"].max(0) == 0).all()
    assert ((jsd["relevance"] >= 0) & (jsd["relevance"] <= 1)).all()
    transfer = np.load(workdir / "affinity" / "transfer.npz")
    assert transfer["share"].shape == transfer["loss"].shape == (n, n + 2)
    header = (workdir / "affinity" / "losses.csv").read_text().splitlines()[0].split(",")
    assert header[-2:] == ["count", "sum"]

    weights = json.loads((workdir / "mixture" / "weights.json").read_text())
    assert weights["targets"] == ["count", "sum"] and len(weights["tasks"]) == n
    for record in weights["mixtures"].values():
        assert len(record["weights"]) == n and len(record["predicted"]) == n + 2
    # The energy's unary term is how relevant each task is to the targets alone.
    one = weights["mixtures"]["taskpgm-jsd"]
    expected = -one["ratio"] * jsd["relevance"].mean(1) @ one["weights"]
    assert one["explain"]["energy_unary"] == pytest.approx(expected)

    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    for model in (results["base"], *results["runs"].values()):
        assert set(model["targets"]) == {"count", "sum"}
        assert not {"count", "sum"} & set(model["tasks"])
        mean = np.mean([model["targets"][name]["loss"] for name in ("count", "sum")])
        assert model["target_mean"]["loss"] == pytest.approx(mean)
        tasks = np.mean([task["loss"] for task in model["tasks"].values()])
        assert model["mean"]["loss"] == pytest.approx(tasks)
    assert "target_mean" in results["runs"]["uniform"]["seeds"][0]
    page = (workdir / "report" / "index.html").read_text()
    assert "<h3>Targets</h3>" in page and "loss, over targets" in page
    assert not (workdir / "adapters" / "count").exists()


@pytest.mark.pipeline
def test_targets_that_cannot_be_are_refused_in_one_line(tasks_folder, tmp_path):
    write_target(tmp_path / "same", "upper", "")
    write_target(tmp_path / "other", "count", "")
    (tmp_path / "empty").mkdir()
    for options, said in (
        ([f"--config.tasks.targets={tmp_path / 'same'}"], "'upper' is the name of another task"),
        ([f"--config.tasks.targets={tmp_path / 'empty'}"], "no file that ends in"),
        ([f"--config.tasks.targets={tmp_path / 'nowhere'}"], "no such path"),
        (["--config.mixture.importance=targets"], "set tasks.targets"),
        (
            [f"--config.tasks.targets={tmp_path / 'other'}", "--config.affinity.contexts=pair"],
            "affinity.contexts=pair",
        ),
    ):
        workdir = tmp_path / "run"
        refused = launch(workdir, f"--config.tasks.source={tasks_folder}", *options, code=1)
        assert said in refused.stderr and refused.stderr.count("\n") == 1
        assert not (workdir / "base").exists()
