"""Whatever a file of numbers holds: those numbers, or one line that names the file."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from taskpgm.stages.given_scores import load_likelihoods, load_losses
from taskpgm.stages.matrix_file import load_matrix

quietly = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
cells = st.sampled_from(
    ["1", "0.5", "-2", "nan", "inf", "1_0", "a", "b", " c", '"', "#", "", "\ufeff"]
)
tables = st.lists(st.lists(cells, max_size=4), max_size=5)
arrays = hnp.arrays(
    st.sampled_from(["f8", "f4", "i4", "?", "c16", "U2", "S2", "M8[D]", "f2"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)


def read(path, reader):
    """What is read, or None where it is refused in one line."""
    try:
        return reader(path)
    except ValueError as error:
        message = str(error)
        assert message and "\n" not in message and str(path) in message
        return None


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def huge() -> bytes:
    """A header that asks for 8 exabytes."""
    return (
        npy(np.zeros((2, 2)))
        .replace(b"(2, 2), }  ", b"(2**0, 2)")
        .replace(b"(2, 2)", b"(1073741824, 1073741824)")
    )


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return buffer.getvalue()


@pytest.mark.parametrize("ending", ["csv", "tsv", "npy", "npz"])
@quietly
@given(content=st.binary(max_size=120))
@example(content=b"\x93NUMPY\x01\x00v\x00")
@example(content=b"PK\x05\x06" + 18 * b"\0")
@example(content=b"a,b\n" + b"9" * 200_000 + b",1\n")
@example(content=b"\xff\xfea\x00")
@example(content=huge())
@example(content=archive(affinity=huge()))
@example(content=archive(affinity=b"no array"))
def test_any_bytes_are_a_matrix_or_refused(tmp_path, ending, content):
    path = tmp_path / f"S.{ending}"
    path.write_bytes(content)
    for reader in (load_matrix, load_losses):
        read(path, reader)
    if ending == "npz":
        read(path, load_likelihoods)


@pytest.mark.parametrize("ending, delimiter", [("csv", ","), ("tsv", "\t")])
@quietly
@given(table=tables)
@example(table=[["a", "b"], ["1", "1_0"], ["0.5", "1"]])
@example(table=[["1", "0.5"], ["0.5", "1"]])
def test_any_table_is_a_matrix_of_all_its_numbers_or_refused(tmp_path, ending, delimiter, table):
    path = tmp_path / f"S.{ending}"
    path.write_text("\n".join(delimiter.join(row) for row in table), encoding="utf-8")
    found = read(path, load_matrix)
    if found is None:
        return
    matrix, names = found
    assert matrix.shape == (len(names), len(names)) and len(set(names)) == len(names)
    assert np.isfinite(matrix).all()
    assert all(name in path.read_text(encoding="utf-8") for name in names)


@quietly
@given(array=arrays, tasks=st.none() | arrays)
@example(array=np.eye(2), tasks=np.array([b"upper", b"shout"]))
@example(array=np.eye(2) * 1j, tasks=None)
@example(array=np.array([["1", "2"], ["3", "4"]]), tasks=None)
@example(array=np.eye(2), tasks=np.array([["a"], ["b"]]))
def test_any_array_is_a_matrix_or_refused(tmp_path, array, tasks):
    path = tmp_path / "S.npz"
    members = {"affinity": npy(array)} | ({} if tasks is None else {"tasks": npy(tasks)})
    path.write_bytes(archive(**members))
    found = read(path, load_matrix)
    if found is not None:
        matrix, names = found
        np.testing.assert_array_equal(matrix, array)
        told = [] if tasks is None else np.atleast_1d(tasks).tolist()
        wanted = [x.decode() if isinstance(x, bytes) else str(x) for x in told]
        assert names == (wanted or [f"task {i}" for i in range(len(matrix))])


@quietly
@given(values=arrays, task=arrays, base=st.none() | arrays, tokens=st.none() | arrays)
@example(values=-np.ones((2, 0)), task=np.zeros(0, int), base=None, tokens=None)
@example(values=-np.ones((2, 2)), task=np.arange(2), base=None, tokens=np.zeros(2))
@example(values=-np.ones((2, 2)), task=np.arange(2), base=np.array([np.nan, 1]), tokens=None)
@example(values=-np.ones((2, 2)), task=np.arange(2), base=None, tokens=None)
def test_any_likelihoods_are_read_or_refused(tmp_path, values, task, base, tokens):
    path = tmp_path / "L.npz"
    given = {"log_likelihood": values, "task": task, "base": base, "tokens": tokens}
    path.write_bytes(archive(**{k: npy(x) for k, x in given.items() if x is not None}))
    found = read(path, load_likelihoods)
    if found is not None:
        _, scores = found
        np.testing.assert_array_equal(scores.log_likelihood, values)
        assert (scores.tokens >= 1).all() and np.isfinite(scores.log_likelihood).all()
