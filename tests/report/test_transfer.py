"""The page's figures of transfer between tasks, and of the predicted losses of mixtures."""

import numpy as np
import pytest

from taskpgm.report import write_page
from taskpgm.report.page import chosen_ratios
from taskpgm.report.study import StudyTransfer, read_study
from taskpgm.report.transfer import influences
from taskpgm.report.worth import predicted_and_measured, rank_correlation


def test_the_three_best_teachers_and_pupils_in_order():
    share = np.array(
        [
            [1, 0.9, -0.2, 0.1, 0.0],
            [0.3, 1, 0.5, 0.2, 0.0],
            [0.4, 0.8, 1, 0.3, 0.0],
            [0.2, 0.7, 0.1, 1, 0.0],
            [0.1, 0.6, -0.1, 0.4, 1],
        ]
    )
    told = influences(
        StudyTransfer(
            tuple("abcde"), share, share, share, np.array([True, True, True, True, False])
        )
    )
    assert told[0].teachers == [("c", "0.40"), ("b", "0.30"), ("d", "0.20")]
    assert told[0].pupils == [("b", "0.90"), ("d", "0.10")]  # who harms or does nothing is none
    assert told[1].teachers == [("a", "0.90"), ("c", "0.80"), ("d", "0.70")]
    assert [row.learnt for row in told] == [True] * 4 + [False]


def test_the_page_shows_transfer_paths_and_predictions(make_workdir, tmp_path):
    workdir = make_workdir(tmp_path / "study", 8, 3)
    page = write_page(workdir).read_text()
    for name in ("transfer", "paths", "predicted", "selection"):
        assert (workdir / "report" / f"{name}.png").is_file(), name
    study = read_study(workdir)
    assert page.count("learnt nothing") == 1
    points = predicted_and_measured(study)
    assert set(points) == set(study.runs)
    name = next(iter(points))
    mixture, losses = study.mixtures[name], study.runs[name]["tasks"]
    assert mixture.predicted is not None
    assert points[name][0] == pytest.approx(mixture.predicted.mean())
    assert points[name][1] == pytest.approx(np.mean([losses[t]["loss"] for t in study.tasks]))
    assert f"rank correlation {rank_correlation(list(points.values())):.2f}" in page
    assert chosen_ratios(study) == {"pmi": 1.6, "jsd": 1.6}


def test_a_rank_correlation_needs_three_different_points():
    assert rank_correlation([(1.0, 2.0), (2.0, 3.0)]) is None
    assert rank_correlation([(1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]) is None
    assert rank_correlation([(1.0, 2.0), (2.0, 3.0), (3.0, 4.0)]) == pytest.approx(1.0)


@pytest.mark.parametrize("file", ["affinity/pmi.npz", "affinity/transfer.npz", "mixture/paths.npz"])
def test_a_damaged_archive_is_one_line(make_workdir, tmp_path, file):
    path = make_workdir(tmp_path / "study", 4, 2) / file
    whole = path.read_bytes()
    for damaged in (whole[:100], b"", b"PK\x03\x04" + whole[4:60]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is damaged") as refused:
            read_study(tmp_path / "study")
        assert str(path) in str(refused.value)
