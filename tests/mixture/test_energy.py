import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskpgm.mixture import Energy, energy_from_affinity, make_positive_definite, solve_exact
from tests.mixture.matrices import affinity


def test_shift_is_the_smallest_that_reaches_the_floor():
    s = affinity(12)
    made = make_positive_definite(s, "shift")
    c = np.diag(made - s)
    np.testing.assert_allclose(made, s + c[0] * np.eye(12))
    values, norm = np.linalg.eigvalsh(made), np.abs(np.linalg.eigvalsh(s)).max()
    np.testing.assert_allclose(values[0], 1e-3 * norm, rtol=1e-9)
    # Enough already: not shifted at all.
    np.testing.assert_array_equal(make_positive_definite(made, "shift", 1e-4), made)


def test_clip_is_the_nearest_matrix_above_the_floor():
    s = affinity(12)
    made = make_positive_definite(s, psd="clip")
    values, vectors = np.linalg.eigh(s)
    floor = 1e-3 * np.abs(values).max()
    np.testing.assert_allclose(np.linalg.eigvalsh(made), np.maximum(values, floor), atol=1e-12)
    np.testing.assert_allclose(made, (vectors * np.maximum(values, floor)) @ vectors.T, atol=1e-12)
    shifted = make_positive_definite(s, "shift")
    assert np.linalg.norm(made - s) < np.linalg.norm(shifted - s)


@pytest.mark.parametrize("psd", ["simplex", "shift", "clip"])
def test_a_matrix_of_zeros_becomes_the_identity(psd):
    np.testing.assert_array_equal(make_positive_definite(np.zeros((3, 3)), psd), np.eye(3))
    energy = energy_from_affinity(np.zeros((3, 3)), 2.0, psd=psd)
    np.testing.assert_array_equal(energy.unary, 0)


def test_energy_is_the_formula():
    s = affinity(12)
    energy = energy_from_affinity(s, 2.5)
    p = np.random.default_rng(0).dirichlet(np.ones(12))
    expected = 0.5 * p @ make_positive_definite(s) @ p - 2.5 / 12 * s.sum(1) @ p
    np.testing.assert_allclose(energy.energy(p), expected)
    np.testing.assert_allclose(sum(energy.terms(p)), expected)
    np.testing.assert_allclose(energy.gradient(p), energy.pairwise @ p - energy.unary)


@pytest.mark.parametrize("x64", [False, True])
def test_float64_inside_and_the_global_default_left_alone(x64):
    s = affinity(12)
    exact = energy_from_affinity(s, 2.0)
    with jax.enable_x64(x64):
        energy = energy_from_affinity(s, 2.0)
        assert jax.config.jax_enable_x64 is x64
        assert jnp.ones(1).dtype == (jnp.float64 if x64 else jnp.float32)
    for array, same in zip(jax.tree.leaves(energy), jax.tree.leaves(exact), strict=True):
        assert isinstance(array, np.ndarray) and array.dtype == np.float64
        np.testing.assert_array_equal(array, same)


def test_any_float_type_and_lists_are_taken():
    s = np.round(affinity(12) * 8) / 8  # exact in bfloat16
    exact = energy_from_affinity(s, 2.0)
    kinds = [s.tolist(), s.astype(np.float32), jnp.asarray(s, jnp.bfloat16), jnp.asarray(s)]
    for kind in kinds:
        np.testing.assert_array_equal(energy_from_affinity(kind, 2).pairwise, exact.pairwise)
    assert energy_from_affinity([[0, 1], [1, 0]], 1).unary.dtype == np.float64


def test_a_batch_of_ratios_shares_one_matrix():
    s = affinity(12)
    batch = energy_from_affinity(s, [0.5, 2.0])
    assert batch.unary.shape == (2, 12) and batch.pairwise.shape == (12, 12)
    np.testing.assert_array_equal(batch.unary[1], energy_from_affinity(s, 2.0).unary)
    assert batch.energy(np.full(12, 1 / 12)).shape == (2,)


def test_under_vmap_and_jit_it_is_a_pytree_in_float64():
    s = affinity(12)
    exact = energy_from_affinity(s, 2.0)
    mapped = jax.vmap(lambda r: energy_from_affinity(s, r))(jnp.array([1.0, 2.0]))  # x64 is off
    assert mapped.unary.dtype == jnp.float64
    np.testing.assert_allclose(np.asarray(mapped.unary)[1], exact.unary, rtol=1e-14)
    with jax.enable_x64(True):
        jitted = jax.jit(lambda r: energy_from_affinity(s, r))(2.0)
    np.testing.assert_allclose(np.asarray(jitted.pairwise), exact.pairwise, rtol=1e-14)


@pytest.mark.parametrize("inside", [lambda f: f, jax.vmap])
def test_jit_without_64_bit_types_is_a_clear_error(inside):
    made = inside(lambda r: energy_from_affinity(np.eye(3), r))
    with pytest.raises(ValueError, match="enable_x64"):
        jax.jit(made)(jnp.ones(2))


def test_rounding_asymmetry_is_averaged_out():
    s = affinity(12)
    tilted = s * (1 + 1e-9 * np.triu(np.ones_like(s)))
    np.testing.assert_allclose(energy_from_affinity(tilted, 1).pairwise, make_positive_definite(s))
    made = energy_from_affinity(tilted, 1).pairwise
    np.testing.assert_array_equal(made, made.T)


S3 = np.zeros((3, 3))


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: energy_from_affinity(np.zeros((2, 3)), 1), "n by n"),
        (lambda: energy_from_affinity(np.zeros(3), 1), "n by n"),
        (lambda: energy_from_affinity(np.zeros((0, 0)), 1), "n >= 1"),
        (lambda: energy_from_affinity(np.full((2, 2), np.nan), 1), "finite"),
        (lambda: energy_from_affinity(np.array([[0, np.inf], [np.inf, 0]]), 1), "finite"),
        (lambda: energy_from_affinity([[0, 1.0], [0.9, 0]], 1), "not symmetric"),
        (lambda: energy_from_affinity([["a"]], 1), "real numbers"),
        (lambda: energy_from_affinity(S3, -1), "negative"),
        (lambda: energy_from_affinity(S3, np.nan), "finite"),
        (lambda: energy_from_affinity(S3, 1, psd="no"), "shift"),
        (lambda: energy_from_affinity(S3, 1, floor=0), "floor"),
        (lambda: solve_exact(Energy(np.zeros(2), np.eye(3))), "unary has 2 entries"),
        (lambda: solve_exact(Energy(np.zeros(3), np.eye(3)), cap=0.2), "infeasible caps"),
        (lambda: solve_exact(Energy(np.zeros(3), np.eye(3)), cap=[1, 1]), "cap has 2 entries"),
        (lambda: solve_exact(Energy(np.zeros(3), np.eye(3)), cap=[1, 1, -1]), "every cap"),
        (lambda: solve_exact(Energy(np.array([0, np.nan, 0]), np.eye(3))), "finite"),
    ],
)
def test_bad_input_is_an_error_of_one_line(make, says):
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)
