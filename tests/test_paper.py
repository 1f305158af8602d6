"""The tables of the paper: named, planned, and run whole on stand-ins."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs import paper
from taskpgm.stages import validate
from tests.stages.launching import ROOT, environment, write_tasks
from tests.stages.stand_in import stand_in

SCRIPT = ROOT / "experiments" / "paper.py"


def ask(*options: str, code: int = 0) -> str:
    """Runs experiments/paper.py and returns what it says."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, options)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.mark.parametrize("family", paper.FAMILIES)
@pytest.mark.parametrize("table", paper.TABLES)
def test_every_table_is_a_config(table, family):
    config = validate(paper.get_config(f"{table}-{family}"))
    assert config.proxy.path == ("" if table == "own" else "models/gpt2")
    assert (config.adapters.lora.rank, config.adapters.lora.alpha) == (8, 32.0)
    assert config.adapters.lora.dropout == 0.1
    assert config.tasks.source == "configs/flan_mix.yaml" and config.mixture.budget == 25_000


def test_the_benchmarks_are_those_of_the_versions():
    assert paper.get_config("budgets-llama2").evaluation.harness == ("mmlu", "bbh")
    assert paper.get_config("budgets-qwen2").evaluation.harness == ("bbh",)


def test_a_name_that_is_none_lists_those_that_are():
    with pytest.raises(ValueError, match="name a table and a family, budgets, .* as in budgets-l"):
        paper.get_config("budgets")
    assert "error: --table=budget-llama2: name one of budgets-llama2" in ask(
        "--table=budget-llama2", code=1
    )
    listed = {line.split()[0] for line in ask("--list").splitlines()}
    assert listed == {f"{t}-{f}" for t in (*paper.TABLES, "proxy") for f in paper.FAMILIES}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> list[str]:
    """Options of a tiny GPT-2, a tiny Llama and tiny tasks."""
    folder: Path = tmp_path_factory.mktemp("paper")
    return [
        "--scale=tiny",
        f"--config.proxy.path={stand_in(folder / 'gpt2', 'gpt2')}",
        f"--config.base.path={stand_in(folder / 'llama', 'llama')}",
        f"--config.tasks.source={write_tasks(folder / 'tasks')}",
    ]


@pytest.mark.pipeline
def test_a_plan_has_a_cost_on_a_named_device(small, tmp_path):
    plan = ("--dry_run", "--device=h100x8")
    said = ask("--table=budgets-llama2", f"--workdir={tmp_path / 'run'}", *small, *plan)
    assert said.startswith("python launch.py --config=configs/paper.py:budgets-llama2 --workdir=")
    assert "on 8 x h100" in said and "14 x " in said  # 7 mixtures, 2 budgets
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def workdir(small, tmp_path_factory) -> Path:
    """Of a family whose first table has been run to its end."""
    folder = tmp_path_factory.mktemp("tables") / "llama2"
    ask("--table=budgets-llama2", f"--workdir={folder}", *small)
    return folder


@pytest.mark.pipeline
def test_a_table_ends_with_every_mixture_under_every_budget(workdir):
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    rows = paper.TABLES["budgets"][1]
    assert {point["row"] for point in results["sweep"]} == set(rows)
    budgets = [point["settings"]["mixture.budget"] for point in results["sweep"]]
    assert sorted(budgets) == [20] * len(rows) + [30] * len(rows)
    assert (workdir / "report" / "sweep-budget.png").is_file()


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("table", "mixture"),
    [
        ("ratio", "closed-form-jsd:psd=shift@ratio=0"),
        ("baselines", "graph-laplacian-pmi"),
        ("selection", "select-jsd:k=2"),
    ],
)
def test_other_tables_take_what_the_first_has_made(table, mixture, workdir, small):
    said = ask(f"--table={table}-llama2", f"--workdir={workdir}", *small, "--stage=mixture")
    assert "to train" not in said  # single-task models are there already
    weights = json.loads((workdir / "mixture" / "weights.json").read_text())
    assert mixture in weights["mixtures"]


@pytest.mark.pipeline
def test_the_proxy_study_compares_two_kinds_of_single_task_models(workdir, small):
    said = ask("--table=proxy-llama2", f"--workdir={workdir}", *small)
    head, _, *rows = (workdir / "proxy_study.md").read_text().splitlines()
    assert "total variation | Spearman" in head and rows == said.splitlines()[-4:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == sorted(paper.TABLES["own"][1])
    for row in rows:
        apart, rank = row.split(" | ")[1:3]
        assert 0 <= float(apart) <= 1 and (rank == "" or -1 <= float(rank) <= 1)
