"""The path against an independent critical line, where cvxcla (extra `bench`) is installed."""

import os
from pathlib import Path

import numpy as np
import pytest

from taskpgm.mixture import make_positive_definite, ratio_path
from tests.mixture.matrices import affinity

SHARED = Path(__file__).parents[3] / "shared" / "data" / "pmi_316.npy"
MATRIX = Path(os.environ.get("TASKPGM_PMI_316", SHARED))


@pytest.mark.parametrize(
    "matrix",
    [
        "made",
        pytest.param(
            "published",
            marks=pytest.mark.skipif(not MATRIX.exists(), reason="no copy of sim_mat.npy"),
        ),
    ],
)
def test_weights_agree_at_every_turning_point(matrix):
    cvxcla = pytest.importorskip("cvxcla")
    s = affinity(60, seed=1) if matrix == "made" else np.load(MATRIX)
    n = len(s)
    line = cvxcla.CLA(
        mean=s.sum(1) / n,
        covariance=cvxcla.IncrementalDenseCovariance(make_positive_definite(s, "shift")),
        lower_bounds=np.zeros(n),
        upper_bounds=np.ones(n),
        a=np.ones((1, n)),
        b=np.ones(1),
    )
    turns = [(point.lamb, point.weights) for point in line.turning_points]
    turns = [(ratio, weights) for ratio, weights in turns if np.isfinite(ratio)]
    assert len(turns) > 20
    path = ratio_path(s, ratio_max=1.01 * max(ratio for ratio, _ in turns), psd="shift")
    found = path.at([ratio for ratio, _ in turns])
    np.testing.assert_allclose(found, [weights for _, weights in turns], rtol=0, atol=2e-11)
    # Both find the same breakpoints.
    own = path.ratios[1:-1]
    theirs = np.array([ratio for ratio, _ in turns if ratio > 1e-12])
    assert all(np.abs(own / ratio - 1).min() < 1e-9 for ratio in theirs)
