"""Sweeps: which models they ask for, and that a workdir accepts more values of any key."""

import json
import shutil

import pytest

from taskpgm.stages import misspelt
from taskpgm.stages.defaults import default_config
from taskpgm.stages.sweep import SWEPT, changed, check, points_of, read_sweep, settings_of
from tests.stages.launching import launch

ROWS = ("uniform", "taskpgm-pmi", "taskpgm-jsd:r=2", "select-pmi")


def config_of(compare=ROWS, **swept):
    config = default_config()
    config.compare = compare
    for key, values in swept.items():
        config = changed(config, {f"sweep.{key.replace('__', '.')}": values})
    return config


def labels(config, first=None):
    return [point.label for point in points_of(config, first or settings_of(config))]


def test_a_row_is_asked_for_once_for_every_value_that_it_depends_on():
    config = config_of(ROWS[:3], ratio=(0, 0.5))
    assert labels(config) == [
        "uniform",
        "taskpgm-pmi@ratio=0",
        "taskpgm-jsd:r=2",
        "taskpgm-pmi@ratio=0.5",
    ]
    config = config_of(ROWS[:3], budget=(100, 200))
    assert labels(config) == [f"{row}@budget={n}" for n in (100, 200) for row in ROWS[:3]]


def test_the_first_settings_have_no_name():
    config = config_of(("taskpgm-pmi",), ratio=(0, 1, "auto"))  # auto is the default
    assert labels(config) == ["taskpgm-pmi@ratio=0", "taskpgm-pmi@ratio=1", "taskpgm-pmi"]
    first = settings_of(config)
    for ratio in ("2.0", "2", "2e0"):  # one number, however it is written
        config = changed(config_of(("taskpgm-pmi",), ratio=(0, ratio)), {"mixture.ratio": "2.00"})
        assert labels(config) == ["taskpgm-pmi@ratio=0", "taskpgm-pmi"]
    config = changed(config_of(("taskpgm-pmi",)), {"mixture.budget": 50, "mixture.ratio": "4"})
    assert labels(config, first) == ["taskpgm-pmi@budget=50,ratio=4"]
    assert labels(config) == ["taskpgm-pmi"]


def test_k_is_an_argument_of_the_rows_that_keep_k_tasks():
    assert labels(config_of(("uniform", "select-pmi", "select-jsd:k=9"), k=(2, 3))) == [
        "uniform",
        "select-pmi:k=2",
        "select-jsd:k=9",
        "select-pmi:k=3",
    ]


def test_keys_of_training_are_swept_and_keys_are_crossed():
    config = config_of(("uniform",), optimizer__lr=(1e-3, 1e-4), budget=(10, 20))
    found = points_of(config, settings_of(config))
    assert [point.label for point in found] == [
        f"uniform@budget={n},optimizer.lr={lr}" for n in (10, 20) for lr in ("0.001", "0.0001")
    ]
    assert {point.name for point in found} == {"uniform@budget=10", "uniform@budget=20"}
    assert found[1].config.train.optimizer.lr == 1e-4 and found[1].config.mixture.budget == 10
    assert len({point.group for point in found}) == 4


def test_seeds_are_counts_and_share_their_models():
    found = points_of(config := config_of(("uniform",), seeds=(1, 3)), settings_of(config))
    assert [(point.label, point.seeds) for point in found] == [("uniform", 1), ("uniform", 3)]


def test_every_key_of_mixture_and_train_can_be_swept():
    flat = {"mixture", "train"}
    known = [k for k in default_config().sweep.to_dict()]
    assert {"k", "ratio", "budget", "seeds", "optimizer", "lora"} <= set(known)
    assert {key.split(".")[0] for key in SWEPT.values()} == flat | {"k"}


@pytest.mark.parametrize(
    ("swept", "said"),
    [
        ({"ratio": (-1,)}, "sweep.ratio: '-1' has to be a number >= 0"),
        ({"ratio": (1, 1.0)}, "sweep.ratio: '1' comes twice"),
        ({"ratio": (1, "1.00")}, "sweep.ratio: '1' comes twice"),
        ({"budget": (0,)}, "sweep.budget: 0 has to be a whole number >= 1"),
        ({"budget": (1.5,)}, "1.5 is no whole number"),
        ({"k": (0,)}, "sweep.k: 0 has to be a whole number >= 1"),
        ({"mode": ("ful",)}, "sweep.mode: 'ful' has to be 'full' or 'lora'"),
        ({"optimizer__lr": ("big",)}, "sweep.optimizer.lr: 'big' has to be a number > 0"),
    ],
)
def test_a_value_that_means_nothing_is_refused(swept, said):
    with pytest.raises(ValueError, match=said):
        read_sweep(config_of(**swept))


def test_a_sweep_that_changes_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sweep.ratio: no row of compare depends on it"):
        read_sweep(config_of(("uniform", "taskpgm-pmi:r=1"), ratio=(1, 2)))
    with pytest.raises(ValueError, match="has to be a multiple of train.accumulate=3"):
        check(config_of(("uniform",), accumulate=(1, 3)), None, tmp_path)


def test_an_unknown_key_is_one_line():
    said = misspelt(["--config.sweep.rato=(1,2)"])
    assert said.endswith("no such key 'sweep.rato'; did you mean 'sweep.ratio'?")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("adapters.epochs", "mixture and train: take a --workdir for each value"),
        ("affinity.kind", "mixture and train: take a --workdir for each value"),
        ("mixture.ratio", "write sweep.ratio"),
        ("train.optimizer.lr", "write sweep.optimizer.lr"),
        ("runs", "name each value in compare, as in ('regmix:runs=...', 'regmix:runs=...')"),
        ("temperature", "as in ('size-proportional:temperature=...'"),
    ],
)
def test_what_is_not_swept_says_why(key, said):
    assert said in misspelt([f"--config.sweep.{key}=(1,2)"])


def test_runs_as_long_as_those_on_mixtures_follow_what_is_swept():
    rows = ("uniform", "doremi", "doremi:steps=3", "skill-it", "regmix:regressor=ridge")
    config = config_of(rows, epochs=(1, 2))
    names = {point.name for point in points_of(config, settings_of(config))}
    assert names == {*rows, "doremi@epochs=2", "skill-it@epochs=2"}
    config = config_of(("doremi", "regmix:regressor=ridge"), optimizer__lr=(2e-5, 1e-3))
    names = {point.name for point in points_of(config, settings_of(config))}
    assert names == {"doremi", "regmix:regressor=ridge"}


# --- Through launch -------------------------------------------------------------------------------
def results(workdir) -> dict:
    return json.loads((workdir / "evaluation" / "results.json").read_text())


def weights(workdir) -> dict[str, bytes]:
    return {p.parts[-3]: p.read_bytes() for p in workdir.glob("runs/*/hf/model.safetensors")}


@pytest.mark.pipeline
def test_a_sweep_takes_more_values_and_replaces_nothing(finished, tasks_folder, tmp_path):
    """It begins where two of its models are there, without a sweep."""
    rest = shutil.ignore_patterns("size-proportional", "taskpgm-jsd")
    workdir = shutil.copytree(finished, tmp_path / "run", ignore=rest)
    assert set(weights(workdir)) == {"uniform", "taskpgm-pmi"}
    rows = "--config.compare=('uniform','taskpgm-pmi')"
    options, measured = [f"--config.tasks.source={tasks_folder}", rows], ["--stage=evaluation"]
    nowhere = tmp_path / "nowhere"
    plan = launch(nowhere, *options, "--config.sweep.ratio=(0,0.5,4)", "--dry_run").stdout
    assert "4 x " in next(line for line in plan.splitlines() if line.startswith("runs"))
    assert not nowhere.exists()

    said = launch(workdir, *options, "--config.sweep.ratio=(0,0.5,4)", *measured).stdout
    one = weights(workdir)
    names = {"uniform", "taskpgm-pmi@ratio=0", "taskpgm-pmi", "taskpgm-pmi@ratio=4"}
    assert set(one) == names
    assert said.count(": trained") == 2
    shown = [p for p in results(workdir)["sweep"] if p["row"] == "taskpgm-pmi"]
    assert [p["settings"]["mixture.ratio"] for p in shown] == ["0", "0.5", "4"]
    assert results(workdir)["sweep"][0]["settings"] == {}  # uniform has no ratio
    assert set(results(workdir)["runs"]) == names  # one budget: all are compared

    # Another value, another budget and another learning rate: what is there stays as it is.
    stamps = {p: p.stat().st_mtime_ns for p in workdir.glob("runs/*/done.json")}
    more = "--config.sweep.ratio=(4,8)", "--config.sweep.budget=(24,16)"
    said = launch(workdir, *options, *more, *measured).stdout
    assert said.count(": trained") == 4 and "taskpgm-pmi@ratio=4: done already" in said
    changed = ("--config.mixture.ratio=4", "--config.train.optimizer.lr=0.01")
    said = launch(workdir, *options, *changed).stdout
    assert "taskpgm-pmi@optimizer.lr=0.01,ratio=4: trained" in said
    after = weights(workdir)
    assert {name: after[name] for name in one} == one
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())

    # All of them are in the table, whichever launch has made them; only equals are compared.
    table = results(workdir)
    assert set(table["runs"]) == {
        "uniform@optimizer.lr=0.01",
        "taskpgm-pmi@optimizer.lr=0.01,ratio=4",
    }
    assert {point["name"] for point in table["sweep"]} == set(after)
    budgets = {p["name"]: p["settings"]["mixture.budget"] for p in table["sweep"]}
    assert budgets["uniform@budget=16"] == 16 and budgets["uniform"] == 24
    page = (workdir / "report" / "index.html").read_text()
    assert '<section id="sweep">' in page
    assert (workdir / "report" / "sweep-ratio.png").is_file()
    assert (workdir / "report" / "sweep.csv").read_text().count("\n") == 1 + len(after)


@pytest.mark.pipeline
def test_seeds_budget_and_k_are_swept_together(finished, tasks_folder, tmp_path):
    models = shutil.ignore_patterns("mixture", "runs", "evaluation", "report")
    workdir = shutil.copytree(finished, tmp_path / "run", ignore=models)
    launch(
        workdir,
        f"--config.tasks.source={tasks_folder}",
        "--config.compare=('uniform','select-pmi')",
        "--config.sweep.k=(1,2)",
        "--config.mixture.max_epochs=24",
        "--config.sweep.seeds=(1,2)",
        "--config.train.steps=2",
        "--stage=evaluation",
    )
    names = {"uniform", "select-pmi:k=1", "select-pmi:k=2"}
    assert set(weights(workdir)) == names | {f"{name}.seed1" for name in names}
    table = results(workdir)["sweep"]
    assert len(table) == 6
    assert {p["settings"].get("k") for p in table if p["row"] == "select-pmi"} == {1, 2}
    for point in table:
        assert (point["sd"] is None) == (point["seeds"] == 1) == (point["best"] is None)
    assert all(len(run["seeds"]) == 2 for run in results(workdir)["runs"].values())
