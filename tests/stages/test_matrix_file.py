"""Matrices from users are read correctly, or refused in one line that names the file."""

import csv
import io
import json

import numpy as np
import pytest

from taskpgm import affinity
from taskpgm.stages.given_scores import load_likelihoods, load_losses
from taskpgm.stages.matrix_file import load_matrix

from .launching import launch

NAMES = list("abcd")
S = np.array([[1, 0.5, 0.25, 0.1], [0.5, 1, 0.3, 0.2], [0.25, 0.3, 1, 0.4], [0.1, 0.2, 0.4, 1]])


def plain(matrix=S, delimiter=","):
    buffer = io.BytesIO()
    np.savetxt(buffer, matrix, delimiter=delimiter, fmt="%g")
    return buffer.getvalue()


def named(order=(0, 1, 2, 3), names=NAMES, corner=""):
    rows = [f"{names[i]}," + ",".join(f"{x:g}" for x in S[i]) for i in order]
    return "\n".join([f"{corner}," + ",".join(names), *rows]).encode()


@pytest.mark.parametrize(
    "ending, data, names",
    [
        ("tsv", b"a\tb\tc\td\n" + plain(delimiter="\t"), NAMES),
        ("csv", b"a,b,c,d\n" + plain(), NAMES),
        ("csv", b"# a,b,c,d\n" + plain(), NAMES),
        ("csv", b"a, b, c, d\n" + plain(), NAMES),
        ("csv", b"\xef\xbb\xbfa,b,c,d\r\n" + plain(), NAMES),
        ("csv", named(), NAMES),
        ("csv", named(corner="task"), NAMES),
        ("csv", named(order=(2, 0, 3, 1)), NAMES),
        ("csv", b"".join(line.encode() for line in named().decode().splitlines(True)[1:]), NAMES),
    ],
)
def test_a_matrix_is_read_whole_and_by_name(tmp_path, ending, data, names):
    path = tmp_path / f"S.{ending}"
    path.write_bytes(data)
    matrix, found = load_matrix(path)
    np.testing.assert_array_equal(matrix, S)
    assert found == names


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", "it is empty"),
        (b"a,b\n", "no row of numbers"),
        (b"a,b\n1,2\n3\n", "line 3 has 1 numbers, 2 wanted"),
        (b"a,b\n1,2\n3,x\n", "line 3: 'x' is no number"),
        (b"a,b\n1,2\n3,nan\n", "row 2, column 2 is no finite number"),
        (b"a,a\n1,2\n3,4\n", "2 tasks need as many different names"),
        (b",a,b\nc,1,2\nd,3,4\n", "row 'c' is not the name of a column"),
        (b"a,b\n1,2\n3,4\n5,6\n", "square"),
        (plain(), "the first row has to name the tasks"),
        (plain(S[:2, :2]), "the first row has to name the tasks"),
    ],
)
def test_what_is_no_matrix_is_refused(tmp_path, data, message):
    path = tmp_path / "S.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as refused:
        load_matrix(path)
    assert str(path) in str(refused.value)


def test_a_field_that_is_too_long_is_refused(tmp_path):
    path = tmp_path / "S.csv"
    path.write_bytes(b"a," + 200 * b"b" + b"\n1,2\n3,4\n")
    before = csv.field_size_limit(100)
    try:
        with pytest.raises(ValueError, match=f"{path}: .*field larger than field limit"):
            load_matrix(path)
    finally:
        csv.field_size_limit(before)


LOSS = np.array([[0.5, 1.5], [1.8, 0.6]])


@pytest.mark.parametrize(
    "data, base",
    [
        (b"a,b\n0.5,1.5\n1.8,0.6\n", None),
        (b"a,b\n2,3\n0.5,1.5\n1.8,0.6\n", [2, 3]),
        (b"model,a,b\nbase,2,3\na,0.5,1.5\nb,1.8,0.6\n", [2, 3]),
        (b"model,a,b\nb,1.8,0.6\na,0.5,1.5\nbase,2,3\n", [2, 3]),
    ],
)
def test_losses_know_their_base(tmp_path, data, base):
    (tmp_path / "L.csv").write_bytes(data)
    names, scores = load_losses(tmp_path / "L.csv")
    assert names.mixed == ["a", "b"] and not names.targets
    np.testing.assert_array_equal(-scores.log_likelihood, LOSS)
    assert (scores.base is None) if base is None else (-scores.base == base).all()
    # Method 2 by hand: half of what each model is worse by on the other's task.
    S = affinity.pmi(scores.log_likelihood, scores.task)
    assert S[0, 1] == pytest.approx(-0.5 * ((1.8 - 0.5) + (1.5 - 0.6)))


def test_log_likelihoods_are_losses_of_examples(tmp_path):
    values, task = -np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 1.0]]), np.array([0, 0, 1])
    np.savez(tmp_path / "l.npz", log_likelihood=values, task=task, base=[-5.0, -5, -4], tasks="ab")
    with pytest.raises(ValueError, match="2 tasks need as many different names"):
        load_likelihoods(tmp_path / "l.npz")
    np.savez(tmp_path / "l.npz", log_likelihood=values, task=task, base=[-5.0, -5, -4])
    names, scores = load_likelihoods(tmp_path / "l.npz")
    assert names.mixed == ["task 0", "task 1"] and not names.targets
    np.testing.assert_array_equal(affinity.losses(scores), [[1.5, 3], [3, 1]])


@pytest.mark.pipeline
def test_from_losses_to_predicted_weights(tmp_path):
    rows = ("uniform", "taskpgm-pmi", "taskpgm-transfer:r=1", "taskpgm-predicted", "select-pmi:k=2")
    rng = np.random.default_rng(0)
    loss = 2.0 - np.kron(np.eye(3), np.ones((2, 2))) + 0.05 * rng.random((6, 6)) - 0.3 * np.eye(6)
    names = [f"t{i}" for i in range(6)]
    lines = [["model", *names], ["base", *["2.5"] * 6]]
    lines += [[name, *map(str, row)] for name, row in zip(names, loss, strict=True)]
    (tmp_path / "L.csv").write_text("\n".join(map(",".join, lines)))
    options = [f"--config.affinity.matrix={tmp_path / 'L.csv'}", "--config.mixture.budget=100"]
    launch(
        tmp_path / "run",
        *options,
        "--config.affinity.kind=loss",
        "--config.mixture.ratio=auto",
        f"--config.compare={rows}",
        "--stage=mixture",
    )
    made = json.loads((tmp_path / "run" / "mixture" / "weights.json").read_text())["mixtures"]
    for name in rows:
        assert sum(made[name]["weights"]) == pytest.approx(1)
        assert len(made[name]["predicted"]) == 6
    assert made["select-pmi:k=2"]["selection"]["share"][1] <= 1
    refused = launch(tmp_path / "other", *options, "--config.mixture.ratio=1", code=1)
    assert "affinity.kind=loss" in refused.stderr
