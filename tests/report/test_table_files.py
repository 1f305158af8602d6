"""Tables as files: the same numbers in every form, and names that are only names."""

import csv
import io
import json
import re

import pytest

from taskpgm.report.records_tables import Head, RecordTable
from taskpgm.report.study import read_study
from taskpgm.report.table_files import (
    csv_text,
    latex,
    latex_text,
    markdown,
    tables,
    write_tables,
)


def read_csv(workdir, name) -> list[dict[str, str]]:
    with (workdir / "report" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def workdir(make_workdir, tmp_path_factory):
    """With the files that write_page writes beside the page."""
    workdir = make_workdir(tmp_path_factory.mktemp("tables") / "it", 10, 3, seeds=3)
    (workdir / "report").mkdir()
    write_tables(read_study(workdir), workdir / "report")
    return workdir


def test_every_table_is_there_in_every_form(workdir):
    study = read_study(workdir)
    assert {table.name for table in tables(study)} == {"results", "pairs", "tasks"}
    for name, rows in (("results", 5), ("pairs", 6), ("tasks", 10)):
        for form in ("csv", "md", "tex"):
            assert (workdir / "report" / f"{name}.{form}").is_file()
        read = read_csv(workdir, name)
        assert len(read) == rows
        assert len(read[0]) == len(set(read[0]))  # no two columns of one name


def test_numbers_are_those_of_the_results(workdir):
    results = json.loads((workdir / "evaluation" / "results.json").read_text())
    rows = {row["mixture"]: row for row in read_csv(workdir, "results")}
    for name, run in results["runs"].items():
        assert float(rows[name]["loss, mean over tasks"]) == run["mean"]["loss"]  # in full
        assert float(rows[name]["exact match, over families"]) == run["family_mean"]["exact_match"]
        best = results["comparison"]["tasks"]["best"][name]
        assert float(rows[name]["probability of being best, over tasks"]) == best
        assert int(rows[name]["tokens"]) == run["tokens"]
        assert float(rows[name]["FLOPs to choose"]) == (3e9 if name.startswith("taskpgm") else 0)
    assert rows["base, not fine-tuned"]["tokens"] == ""  # not known is no text
    pairs = read_csv(workdir, "pairs")
    for row, pair in zip(pairs, results["comparison"]["tasks"]["pairs"], strict=True):
        assert float(row["difference over tasks"]) == pair["difference"]
        assert float(row["upper end, tasks"]) == pair["high"]


ODD = ["a|b", "x_1 & y_2", "50% #1", "$\\alpha$", "=HYPERLINK(1)", "two\nlines", 'a,b;"c"', "{~^}"]


@pytest.fixture
def odd():
    return RecordTable("odd", (Head("name"), Head("loss", ".4f")), [(name, -0.5) for name in ODD])


def test_csv_gives_names_back(odd):
    read = list(csv.reader(io.StringIO(csv_text(odd))))
    assert [row[0].removeprefix("'") for row in read[1:]] == ODD
    assert read[5][0].startswith("'=")  # a spreadsheet computes nothing
    assert {row[1] for row in read[1:]} == {"-0.5"}


def test_markdown_has_as_many_cells_as_columns(odd):
    lines = markdown(odd).splitlines()
    assert len(lines) == 2 + len(ODD)
    for line in lines:
        assert len(re.findall(r"(?<!\\)\|", line)) == 3
    assert r"a\|b" in lines[2] and r"x\_1" in lines[3]


def test_latex_has_no_command_of_a_name(odd):
    lines = latex(odd).splitlines()
    body = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert len(body) == len(ODD)
    for line in body:
        assert len(re.findall(r"(?<!\\)&", line)) == 1
        assert line.endswith(r" & $-$0.5000 \\")
        assert not re.search(r"(?<!\\)[%#_]", line)
    assert latex_text("$\\alpha$ {~^}") == (
        r"\$\textbackslash{}alpha\$ \{\textasciitilde{}\textasciicircum{}\}"
    )
