import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskpgm.mixture import project_simplex


def by_bisection(y, cap):
    """p = clip(y - theta, 0, cap) with the theta that makes it sum to 1, to the last bit of it."""
    low, high = (y - 1).min(), y.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(y - middle, 0, cap).sum() > 1 else (low, middle)
    return np.clip(y - high, 0, cap)


@pytest.mark.parametrize(
    "y, cap, expected",
    [
        ([-5, 0], None, [0, 1]),
        ([3.0], None, [1]),
        ([0.0, 0.0, 0.0, 0.0], None, [0.25] * 4),
        ([0.5, 0.5], None, [0.5, 0.5]),
        ([1.0, 1.0, -9.0], None, [0.5, 0.5, 0]),
        ([1e30, 0.0, -1e30], None, [1, 0, 0]),
        ([1e30, 1e30, 0.0], None, [0.5, 0.5, 0]),
        ([-1e30, -1e30], None, [0.5, 0.5]),
        ([1e30, 0.0], [0.5, 1.0], [0.5, 0.5]),
        ([1e30, 1e30], [0.3, 1.0], [0.3, 0.7]),
        ([9.0, 9.0, 9.0], [0.2, 0.9, 0.9], [0.2, 0.4, 0.4]),
        ([5.0, 1.0], [0.4, 0.6], [0.4, 0.6]),
        ([5.0, 1.0, 7.0], [0.0, 1.0, 0.5], [0, 0.5, 0.5]),
        ([1.0] * 10, [0.1] * 10, [0.1] * 10),  # ten times 0.1 is below 1 in floating point
    ],
)
@pytest.mark.parametrize("dtype", ["list", "float32", "float64"])
def test_known_projections(y, cap, expected, dtype):
    with jax.enable_x64(dtype == "float64"):
        given_y = y if dtype == "list" else jnp.asarray(y, dtype)
        p = project_simplex(given_y, cap)
        assert p.dtype == ("float64" if dtype == "list" else dtype)
        assert isinstance(p, np.ndarray if dtype == "list" else jax.Array)
    np.testing.assert_allclose(p, expected, atol=1e-6 if dtype == "float32" else 1e-15)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=6, max_size=6),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
    st.booleans(),
)
def test_it_is_the_shifted_and_clipped_point_for_any_point_and_caps(y, cap, capped):
    y, cap = np.array(y), np.array(cap)
    if not capped or cap.sum() < 1:
        cap = None
    p = project_simplex(y, cap)
    assert abs(p.sum() - 1) < 1e-14
    np.testing.assert_allclose(p, by_bisection(y, np.ones(6) if cap is None else cap), atol=1e-12)


def test_float32_is_as_exact_as_float32_can_be():
    y = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 3
    p = project_simplex(jnp.asarray(y))
    assert p.dtype == jnp.float32
    np.testing.assert_allclose(p, project_simplex(y.astype(np.float64)), atol=1e-6)


def test_jit_vmap_and_grad_agree_with_plain_calls():
    y = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)
    cap = np.full(7, 0.3, np.float32)
    plain = np.stack([project_simplex(jnp.asarray(row), cap) for row in y])
    np.testing.assert_allclose(jax.jit(jax.vmap(project_simplex, (0, None)))(y, cap), plain)

    with jax.enable_x64(True):
        y = jnp.asarray(0.3 * np.random.default_rng(2).normal(size=7))
        for limit in (None, np.full(7, 0.25)):
            jacobian = jax.jit(jax.jacobian(lambda x, limit=limit: project_simplex(x, limit)))(y)
            shift = 1e-6 * np.eye(7)
            there, back = (
                np.stack([project_simplex(jnp.asarray(x), limit) for x in np.asarray(y) + sign])
                for sign in (shift, -shift)
            )
            np.testing.assert_allclose(np.asarray(jacobian).T, (there - back) / 2e-6, atol=1e-8)


def test_gradient_is_finite_at_ties_and_huge_entries():
    for y in ([1.0, 1.0, 1.0], [1e30, 0.0, -1e30], [2.0, 1.0, 0.0], [0.0]):
        jacobian = jax.jit(jax.jacobian(project_simplex))(np.array(y, np.float32))
        assert np.isfinite(np.asarray(jacobian)).all()


@pytest.mark.parametrize(
    "y, cap, says",
    [
        ([0.0, np.nan], None, "finite"),
        ([0.0, np.inf], None, "finite"),
        ([], None, "n >= 1"),
        ([[0.0, 1.0]], None, "vector"),
        ([0.0, 1.0], [0.4, 0.4], "infeasible caps"),
        ([0.0, 1.0], [-0.1, 1.5], "every cap"),
        ([0.0, 1.0], [np.nan, 1.5], "every cap"),
        (["a", "b"], None, "real numbers"),
    ],
)
def test_bad_input_is_an_error_of_one_line(y, cap, says):
    with pytest.raises(ValueError, match=says) as error:
        project_simplex(y, cap)
    assert "\n" not in str(error.value)


def test_infeasible_caps_give_nan_where_values_cannot_be_looked_at():
    found = jax.jit(project_simplex)(np.zeros(2, np.float32), np.full(2, 0.4, np.float32))
    assert np.isnan(np.asarray(found)).all()
