"""What a user wants of a mixture: importance, bounds, prior; from a config to certified weights."""

import json

import numpy as np
import pytest

from taskpgm.stages.preferences import read_bounds, read_importance, read_prior

from .launching import launch

NAMES, FAMILIES = ["a", "b", "c"], ["x", "x", "y"]


def test_bounds_are_read_alike_from_text_and_file(tmp_path):
    path = tmp_path / "bounds.json"
    path.write_text(json.dumps({"a": [0, 0.1], "family:y": [0.05, 0.3]}))
    for value in ("a=0:0.1,family:y=0.05:0.3", "a=0:.1, family:y=0.05:0.3", str(path)):
        bounds = read_bounds(value, NAMES, FAMILIES)
        assert bounds is not None
        np.testing.assert_array_equal(bounds.low, [0, 0, 0])
        np.testing.assert_array_equal(bounds.high, [0.1, 1, 1])
        np.testing.assert_array_equal(bounds.family, [0, 0, 1])
        np.testing.assert_array_equal(bounds.family_low, [0, 0.05])
        np.testing.assert_array_equal(bounds.family_high, [1, 0.3])
    assert read_bounds("", NAMES, FAMILIES) is None
    alone = read_bounds("b=0.2:1", NAMES, FAMILIES)
    assert alone is not None and alone.family is None


@pytest.mark.parametrize(
    "value, said",
    [
        ("d=0:0.1", "'d' is no task here"),
        ("familly:x=0:0.1", "did you mean 'family:x'"),
        ("a=0.1", "has to be two numbers"),
        ("a=0:0.1:0.2", "has to be two numbers"),
        ("a=low:0.1", "'a=low:0.1' has to be NAME=LOW:HIGH"),
        ("a=0:1.5", "two numbers from 0 to 1"),
        ("a=nan:1", "two numbers from 0 to 1"),
        ("a=0.3:0.1", "'a' has 0.3 above 0.1"),
        ("a=0:1,a=0:1", "'a' has two bounds"),
        ("nowhere.json", "no such file"),
        ("a=0.7:1,b=0.7:1", "the lower ones sum to 1.4"),
        ("family:x=0:0.3,c=0:0.3", "the upper bounds sum to 0.6"),
        ("a=0.4:1,family:x=0:0.3", "family x needs at least 0.4"),
    ],
)
def test_bounds_that_cannot_be_are_refused_by_name(value, said):
    with pytest.raises(ValueError, match=said) as refused:
        read_bounds(value, NAMES, FAMILIES)
    assert "mixture.bounds" in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_of_bounds_that_is_none_is_refused(tmp_path):
    path = tmp_path / "bounds.json"
    for text in ("{", "[1]", '{"a": 3}', '{"a": ["x", "y"]}'):
        path.write_text(text)
        with pytest.raises(ValueError, match="bounds.json: not a JSON object"):
            read_bounds(str(path), NAMES, FAMILIES)


def test_priors(tmp_path):
    sizes, w = np.array([1, 2, 5]), np.array([0.5, 0.25, 0.25])
    path = tmp_path / "prior.json"
    path.write_text(json.dumps({"c": 3, "a": 1}))
    for value, expected in (
        ("importance", w),
        ("uniform", [1 / 3] * 3),
        ("families", [0.25, 0.25, 0.5]),
        ("size", [1 / 8, 2 / 8, 5 / 8]),
        (str(path), [0.25, 0, 0.75]),
    ):
        np.testing.assert_allclose(read_prior(value, NAMES, FAMILIES, sizes, w), expected)
    some = np.array([1.0, 0, 0])
    np.testing.assert_allclose(read_prior("importance", NAMES, FAMILIES, sizes, some), [1 / 3] * 3)
    with pytest.raises(ValueError, match="sizes are not known"):
        read_prior("size", NAMES, FAMILIES, None, w)
    with pytest.raises(ValueError, match="mixture.prior=unifrom: importance, uniform"):
        read_prior("unifrom", NAMES, FAMILIES, sizes, w)
    with pytest.raises(ValueError, match="no families here"):
        read_prior("families", NAMES, ["", "", ""], sizes, w)


def test_importance_of_tasks_and_families(tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"x": 2, "c": 2}))
    np.testing.assert_allclose(read_importance(str(path), NAMES, FAMILIES), [0.25, 0.25, 0.5])
    np.testing.assert_allclose(read_importance("families", NAMES, FAMILIES), [0.25, 0.25, 0.5])
    path.write_text(json.dumps({"z": 2}))
    with pytest.raises(ValueError, match="'z' is neither a task nor a family"):
        read_importance(str(path), NAMES, FAMILIES)


OURS = (
    "taskpgm-pmi:r=0.5",
    "taskpgm-pmi:kl=0.2",
    "taskpgm-transfer:r=2",
    "taskpgm-predicted",
    "select-pmi:k=4",
)


@pytest.mark.pipeline
def test_bounds_and_prior_hold_for_every_row_of_ours(tmp_path):
    rng = np.random.default_rng(0)
    loss = 2.0 - np.kron(np.eye(3), np.ones((2, 2))) + 0.05 * rng.random((6, 6)) - 0.3 * np.eye(6)
    names = [f"t{i}" for i in range(6)]
    lines = [names] + [list(map(str, row)) for row in loss]
    (tmp_path / "L.csv").write_text("\n".join(map(",".join, lines)))
    options = (
        f"--config.affinity.matrix={tmp_path / 'L.csv'}",
        "--config.affinity.kind=loss",
        "--config.mixture.budget=100",
        f"--config.compare={('uniform', *OURS)}",
    )
    bounds = "t0=0.3:1,t1=0:0.05,t2=0.1:0.12"
    solved = "--stage=mixture"
    launch(tmp_path / "run", *options, f"--config.mixture.bounds={bounds}", solved)
    made = json.loads((tmp_path / "run" / "mixture" / "weights.json").read_text())["mixtures"]
    for name in OURS:
        p = np.array(made[name]["weights"])
        assert p[0] >= 0.3 - 1e-12 and p[1] <= 0.05 + 1e-12 and 0.1 - 1e-12 <= p[2] <= 0.12 + 1e-12
        assert made[name]["gap"] <= 1e-8
    assert made["taskpgm-pmi:kl=0.2"]["method"] == "entropic"
    paths = np.load(tmp_path / "run" / "mixture" / "paths.npz")
    assert (paths["pmi_weights"][:, 0] >= 0.3 - 1e-12).all()
    # Pulled hard, it is the prior.
    (tmp_path / "prior.json").write_text(json.dumps({name: i + 1 for i, name in enumerate(names)}))
    pulled = ("--config.mixture.kl=1e6", f"--config.mixture.prior={tmp_path / 'prior.json'}")
    launch(tmp_path / "pulled", *options, *pulled, solved)
    made = json.loads((tmp_path / "pulled" / "mixture" / "weights.json").read_text())["mixtures"]
    expected = np.arange(1, 7) / 21
    np.testing.assert_allclose(made["taskpgm-pmi:r=0.5"]["weights"], expected, atol=1e-4)
    # What cannot be is refused in one line, before anything is made.
    for extra, said in (
        ("--config.mixture.bounds=t0=0.8:1,t1=0.8:1", "lower ones sum to 1.6"),
        ("--config.mixture.bounds=t9=0:1", "'t9' is no task here"),
        (
            f"--config.mixture.bounds={','.join(f'{name}=0:0.2' for name in names)}",
            "select-pmi:k=4",
        ),
        ("--config.mixture.prior=size", "affinity.sizes"),
    ):
        refused = launch(tmp_path / "other", *options, extra, code=1)
        assert said in refused.stderr and refused.stderr.count("\n") == 1
        assert not (tmp_path / "other" / "affinity").exists()
