import numpy as np
import pytest

from taskpgm.mixture import (
    energy_from_affinity,
    make_positive_definite,
    project_simplex,
    ratio_path,
    solve_exact,
)
from tests.mixture.matrices import affinity, gap

N = 40


def assert_whole(s, path, ratio_max, **options):
    """Certified at every kink, linear in between, and nowhere worse than `solve_exact`."""
    assert path.ratios[0] == 0 and path.ratios[-1] == ratio_max
    assert (np.diff(path.ratios) > 0).all()
    assert path.weights.shape == (len(path.ratios), len(s)) and path.weights.dtype == np.float64
    np.testing.assert_allclose(path.weights.sum(1), 1, atol=1e-13)
    assert (path.weights >= 0).all()
    energies = energy_from_affinity(s, path.ratios, **options)
    for p, u, g, e in zip(path.weights, energies.unary, path.gap, path.energy, strict=True):
        own = gap(u, energies.pairwise, p)
        assert max(own, g) <= 1e-9 * max(1, abs(e))
    middles = (path.ratios[1:] + path.ratios[:-1]) / 2
    some = np.linspace(0, ratio_max, 7)
    for ratio in np.concatenate([middles[:: max(1, len(middles) // 5)], some]):
        energy = energy_from_affinity(s, ratio, **options)
        assert abs(energy.energy(path.at(ratio)) - solve_exact(energy).energy) <= 1e-9


@pytest.mark.parametrize("psd", ["simplex", "shift", "clip"])
def test_every_kink_is_certified_and_any_ratio_agrees_with_the_exact_solution(psd):
    s = affinity(N)
    path = ratio_path(s, ratio_max=50.0, psd=psd)
    assert_whole(s, path, 50.0, psd=psd)
    assert path.support[-1] < path.support[0]


def test_every_inner_breakpoint_changes_the_sets_and_all_of_them_are_there():
    s = affinity(N)
    path = ratio_path(s, ratio_max=20.0)
    energy = energy_from_affinity(s, path.ratios)
    inside = (path.weights[:-1] + path.weights[1:]) / 2 > 1e-14
    assert (inside[:-1] != inside[1:]).any(1).all()
    # Between kinks the support of the exact solution is the one support of that piece.
    pieces = list(zip(path.ratios, path.ratios[1:], inside, strict=False))
    for low, high, support in pieces[::3]:
        for share in (0.1, 0.9):
            p = solve_exact(energy_from_affinity(s, low + share * (high - low))).weights
            np.testing.assert_array_equal(p > 1e-14, support)
    assert len(energy.unary) > 10


def test_ratio_one_is_uniform_and_weights_are_continuous():
    s = affinity(N)
    path = ratio_path(s, ratio_max=5.0)
    np.testing.assert_allclose(path.at(1.0), 1 / N, atol=1e-13)
    fine = path.at(np.linspace(0, 5, 2001))
    assert fine.shape == (2001, N) and np.abs(np.diff(fine, axis=0)).max() < 0.01


def test_degenerate_ties():
    """Tasks in identical pairs and triples reach zero at the same ratios, exactly."""
    base = affinity(13, seed=4)
    which = np.repeat(np.arange(13), 3)[: N - 1]
    twins = base[np.ix_(which, which)]
    twins = np.pad(twins, ((0, 1), (0, 1)))  # and one task that is related to nothing
    path = ratio_path(twins, ratio_max=40.0)
    assert_whole(twins, path, 40.0)
    for row in path.weights:
        np.testing.assert_allclose(row[[0, 3, 6]], row[[2, 5, 8]], atol=1e-12)


def test_block_matrix_where_whole_families_move_at_once():
    s = np.kron(np.eye(4), np.ones((10, 10))) - np.eye(N)
    s[:10, :10] *= 2
    assert_whole(s, ratio_path(s, ratio_max=30.0), 30.0)


def test_matrices_without_a_breakpoint():
    path = ratio_path(np.zeros((N, N)), ratio_max=7.0)
    np.testing.assert_array_equal(path.ratios, [0, 7])
    np.testing.assert_allclose(path.weights, 1 / N)
    path = ratio_path([[2.0]], ratio_max=7.0)
    np.testing.assert_array_equal(path.weights, [[1], [1]])
    path = ratio_path(affinity(N), ratio_max=0.0)
    assert len(path.ratios) == 1 and path.at(0.0).shape == (N,)


def test_two_tasks_by_hand():
    """S = diag(1, 0): S~ = diag(1.001, 0.001), u = (r/2, 0); p_1 = (r/2 + 0.001) / 1.002."""
    path = ratio_path(np.diag([1.0, 0.0]), ratio_max=4.0, psd="shift")
    made = make_positive_definite(np.diag([1.0, 0.0]), "shift")
    np.testing.assert_allclose(made, np.diag([1.001, 0.001]))
    np.testing.assert_allclose(path.ratios, [0, 2.002, 4])
    for r in (0.0, 1.0, 2.0):
        np.testing.assert_allclose(path.at(r)[0], (r / 2 + 0.001) / 1.002)
    np.testing.assert_allclose(path.at(3.0), project_simplex([9.0, 0.0]))


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: ratio_path(affinity(N), ratio_max=-1), "ratio_max"),
        (lambda: ratio_path(affinity(N), ratio_max=np.inf), "finite"),
        (lambda: ratio_path(np.zeros((2, 3)), ratio_max=1), "n by n"),
        (lambda: ratio_path(np.zeros((4, 3, 3)), ratio_max=1), "one matrix"),
        (lambda: ratio_path(affinity(N), ratio_max=5.0).at(5.1), "outside of this path"),
        (lambda: ratio_path(affinity(N), ratio_max=5.0).at(-0.1), "outside of this path"),
    ],
)
def test_bad_input_is_an_error_of_one_line(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)
