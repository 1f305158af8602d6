"""The tables of the paper: named, planned, and run whole on stand-ins."""

import contextlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from configs import paper
from taskpgm.stages import validate
from taskpgm.stages.sweep import depends
from tests.stages.launching import ROOT, launch, write_tasks
from tests.stages.stand_in import stand_in

SCRIPT = ROOT / "experiments" / "paper.py"
tiny_sweeps = runpy.run_path(str(SCRIPT))["TINY_SWEEPS"]


def ask(*options: str, code: int = 0) -> str:
    """Runs experiments/paper.py, and what it starts in forks; returns what both say."""

    def start(words: list[str]) -> subprocess.CompletedProcess:
        config, folder, *rest = words[2:]
        done = launch(folder.split("=", 1)[1], *rest, config=config.split("=", 1)[1])
        print(done.stdout)
        return done

    ended = 0
    with (
        mock.patch.object(subprocess, "run", start),
        mock.patch.object(sys, "argv", ["paper.py", *options]),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(io.StringIO()) as said,
    ):
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as error:
            ended = error.code if isinstance(error.code, int) else 1
            print(error.code)
    assert ended == code, said.getvalue()
    return said.getvalue()


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
def workdir(tmp_path_factory) -> Path:
    """Of all tables of a family: what they have in common is made by the first."""
    return tmp_path_factory.mktemp("tables") / "llama2"


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> list[str]:
    """Options of a question as MMLU has them, and of one as BIG-Bench Hard has them."""
    folder = tmp_path_factory.mktemp("benchmarks")
    (folder / "rows.jsonl").write_text('{"q": "upper wa: ", "a": "WA", "other": "wb"}\n' * 2)
    head = "dataset_path: json\ndataset_kwargs: {data_files: {test: %s}}\ntest_split: test\n"
    for name, rest in STAND_INS.items():
        task = f"task: {name}\n{head % (folder / 'rows.jsonl')}doc_to_text: '{{{{q}}}}'\n{rest}"
        (folder / f"{name}.yaml").write_text(task)
    names = tuple(STAND_INS)
    return [f"--config.evaluation.harness={names}", f"--config.evaluation.harness_path={folder}"]


STAND_INS = {
    "tiny_mmlu": "output_type: multiple_choice\ndoc_to_choice: ['{{a}}', '{{other}}']\n"
    "doc_to_target: 0\nmetric_list: [{metric: acc}]\n",
    "tiny_bbh": "output_type: generate_until\ndoc_to_target: '{{a}}'\n"
    "generation_kwargs: {max_gen_toks: 2, until: []}\nmetric_list: [{metric: exact_match}]\n",
}
# Of each table two models that have to be there, and a file of its report.
OWN = {
    "budgets": ("uniform", "taskpgm-jsd@budget=30", "sweep-budget.png"),
    "ratio": ("taskpgm-pmi@ratio=0", "closed-form-jsd:psd=shift@ratio=0", "sweep-ratio.png"),
    "baselines": ("clustered-pmi", "graph-laplacian-pmi", "index.html"),
    "selection": ("select-pmi:k=1", "select-jsd:k=2", "sweep-k.png"),
}


@pytest.mark.pipeline
@pytest.mark.parametrize("table", [name for name in paper.TABLES if name not in ("gpt2", "own")])
def test_a_table_runs_to_its_end_with_every_row_under_every_value(
    table, workdir, small, benchmarks
):
    judges = benchmarks if table == "selection" else []
    before = {path.parent.name for path in workdir.glob("runs/*/done.json")}
    said = ask(f"--table={table}-llama2", f"--workdir={workdir}", *small, *judges)
    assert not before or "adapters  done already" in said
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    _, rows, swept = paper.TABLES[table]
    *models, figure = OWN[table]
    found = {point["name"]: point for point in results["sweep"]}
    assert {*models} <= set(found) and (workdir / "report" / figure).stat().st_size
    for row in rows:
        ways = [point["settings"] for point in found.values() if point["row"] == row]
        assert ways, row
        for key in swept:
            name = key if key == "k" else f"mixture.{key}"
            values = {*map(str, tiny_sweeps[key])} if depends(row, name) else set()
            assert values <= {str(way.get(name)) for way in ways}, (row, key)
    assert said.count(": trained") == len(found) - len(before)  # no model is trained twice
    assert all(point["steps"] == 2 and point["loss"] > 0 for point in found.values())
    page = (workdir / "report" / "index.html").read_text()
    assert all(f">{name}<" in page for name in results["runs"])
    if judges:
        for run in results["runs"].values():
            assert set(run["harness"]) == set(STAND_INS)
        assert all(f"{name}" in page for name in STAND_INS)


@pytest.mark.pipeline
def test_the_proxy_study_compares_two_kinds_of_single_task_models(workdir, small):
    said = ask("--table=proxy-llama2", f"--workdir={workdir}", *small)
    head, _, *rows = (workdir / "proxy_study.md").read_text().splitlines()
    assert "total variation | Spearman" in head and rows == said.splitlines()[-4:]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == sorted(paper.TABLES["own"][1])
    for row in rows:
        apart, rank = row.split(" | ")[1:3]
        assert 0 <= float(apart) <= 1 and (rank == "" or -1 <= float(rank) <= 1)
