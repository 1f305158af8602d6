"""What the page says about the results, for all outcomes."""

import json

import pytest

from taskpgm.report import findings, results_table
from taskpgm.report.study import read_study
from tests.report.conftest import compare_again


def edited(workdir, edit, name="evaluation/results.json"):
    value = json.loads((workdir / name).read_text())
    edit(value)
    compare_again(value, read_study(workdir).family)
    (workdir / name).write_text(json.dumps(value))
    return read_study(workdir)


def test_a_win_is_told_with_its_interval(make_workdir, tmp_path):
    text = findings.finding(read_study(make_workdir(tmp_path, 12, 4)))
    assert text.startswith("Of 4 mixtures, taskpgm-pmi has the lowest mean test loss: ")
    assert "below uniform, the next. taskpgm-pmi is lower than uniform's on " in text
    assert (
        "of 12 tasks (95% interval of the mean difference over tasks alone: \N{MINUS SIGN}" in text
    )
    assert "does not win" not in text
    assert "one seed cannot tell such mixtures apart" in text


def test_several_seeds_tell_how_sure_the_first_place_is(make_workdir, tmp_path):
    text = findings.finding(read_study(make_workdir(tmp_path / "a", 12, 4, seeds=4)))
    assert (
        "The 95% interval of that difference, over 4 seeds and 12 tasks, is \N{MINUS SIGN}" in text
    )
    assert "taskpgm-pmi is the best mixture with probability 1.00" in text
    assert "one seed" not in text
    text = findings.finding(read_study(make_workdir(tmp_path / "b", 12, 4, seeds=4, spread=0.05)))
    assert "which holds zero: they cannot be told apart, about " in text
    assert (
        "seeds would be needed for it; taskpgm-pmi is the best mixture with probability 0." in text
    )


def test_a_setting_chosen_by_test_rows_is_said_to_be(make_workdir, tmp_path):
    def sweep(results):
        results["runs"]["taskpgm-pmi@ratio=4"] = results["runs"]["uniform"]

    flatters = "the best setting was found by the same test rows, which flatters it."
    workdir = make_workdir(tmp_path, 12, 4)
    assert flatters not in findings.finding(read_study(workdir))
    assert flatters in findings.finding(edited(workdir, sweep))


def test_a_run_without_a_loss_is_named(make_workdir, tmp_path):
    def lose(results):
        del results["runs"]["taskpgm-jsd"]["tasks"][read_study(tmp_path).tasks[0]]

    text = findings.finding(edited(make_workdir(tmp_path, 12, 4), lose))
    assert "taskpgm-jsd has no loss on some task, and is not compared." in text


def test_another_order_over_families_is_told(make_workdir, tmp_path):
    def change(results):
        results["runs"]["uniform"]["family_mean"]["loss"] = 0.125

    text = findings.finding(edited(make_workdir(tmp_path, 12, 4), change))
    assert "Over families uniform is first, 0.1250 against " in text
    assert text.index("Over families uniform") < text.index("lower than uniform's")


def test_a_loss_is_told_as_one(make_workdir, tmp_path):
    text = findings.finding(read_study(make_workdir(tmp_path, 12, 4, winner="uniform")))
    assert text.startswith("Of 4 mixtures, uniform has the lowest mean test loss")
    assert "TaskPGM does not win here: taskpgm-pmi, its best mixture, is " in text
    assert "above uniform" in text


def test_what_may_be_chance_is_called_so(make_workdir, tmp_path):
    def level(results):
        runs = results["runs"]
        for i, (task, report) in enumerate(runs["taskpgm-pmi"]["tasks"].items()):
            shift = -0.2 if i % 2 else 0.19
            report["loss"] = runs["uniform"]["tasks"][task]["loss"] + shift
        runs["taskpgm-pmi"]["mean"]["loss"] = runs["uniform"]["mean"]["loss"] - 0.005

    study = edited(make_workdir(tmp_path, 12, 4), level)
    assert "which holds zero: it may be chance)." in findings.finding(study)
    compared = findings.compared(study, "taskpgm-pmi", "uniform")
    assert compared.difference == pytest.approx(-0.005)
    assert compared.low < 0 < compared.high
    assert (compared.wins, compared.ties) == (6, 0)
    other = findings.compared(study, "uniform", "taskpgm-pmi")
    assert (other.difference, other.wins) == (-compared.difference, 6)
    assert (other.low, other.high) == (-compared.high, -compared.low)


def test_another_order_by_exact_match_and_a_base_ahead_are_told(make_workdir, tmp_path):
    def change(results):
        results["runs"]["uniform"]["mean"]["exact_match"] = 0.875
        results["base"]["mean"]["loss"] = 0.001

    text = findings.finding(edited(make_workdir(tmp_path, 12, 4), change))
    assert "By exact match uniform is first, 87.5% against " in text
    assert "No mixture beats the base model without fine-tuning (0.0010)." in text


def test_one_mixture_and_none(make_workdir, tmp_path):
    def only(results):
        results["runs"] = {"uniform": results["runs"]["uniform"]}

    workdir = make_workdir(tmp_path, 8, 2)
    assert "nothing to compare it with" in findings.finding(edited(workdir, only))
    (workdir / "evaluation" / "results.json").unlink()
    text = findings.finding(read_study(workdir))
    assert text.startswith("taskpgm-pmi keeps ")
    assert "No model was trained on it" in text


def test_the_table_is_aligned_and_marks_the_best(make_workdir, tmp_path):
    lines = results_table(make_workdir(tmp_path, 12, 4)).splitlines()
    assert lines[0].split()[0] == "mixture"
    assert lines[0].split()[-5:] == ["examples", "tokens", "steps", "epochs", "seconds"]
    assert [line.split("  ")[0] for line in lines[2:7]] == [
        "base, not fine-tuned",
        "uniform",
        "size-proportional",
        "taskpgm-pmi",
        "taskpgm-jsd",
    ]
    assert lines[5].count("*") == 4
    assert all(line.count("*") == 0 for line in (*lines[2:5], lines[6]))
    assert len({line.rindex("400") for line in lines[3:7]}) == 1
    assert (
        "loss minus that of taskpgm-pmi; intervals over tasks (families) alone: one seed" in lines
    )


def test_the_table_without_runs_lists_the_heaviest_tasks(make_workdir, tmp_path):
    workdir = make_workdir(tmp_path, 30, 4)
    (workdir / "evaluation" / "results.json").unlink()
    text = results_table(workdir)
    assert text.startswith("task ")
    assert "tasks have weight zero" in text


def test_ties_are_all_best():
    assert findings.best([0.12341, 0.12339, 0.5, None], True) == {0, 1}
    assert findings.best([0.3, 0.7], False) == {1}
    assert findings.best([None, None], True) == set()
