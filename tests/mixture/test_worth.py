"""Predicted loss: convex, monotone, minimised with a certificate; and the ratio chosen by it."""

import itertools

import jax
import numpy as np
import pytest

from taskpgm.mixture import (
    Path,
    PredictedLoss,
    choose_ratio,
    energy_from_affinity,
    ratio_path,
    solve_exact,
)
from taskpgm.mixture.bounds import Bounds


def losses(n=4, seed=0, help_=0.5):
    """Mean losses of n single-task models: 3 nats untrained, 1 on the own task, help at random."""
    rng = np.random.default_rng(seed)
    matrix = 3.0 - 2.0 * help_ * rng.random((n, n))
    matrix[np.arange(n), np.arange(n)] = 1.0 + 0.3 * rng.random(n)
    return matrix


def law(n=4, seed=0, **given):
    return PredictedLoss.from_losses(losses(n, seed), np.full(n, 3.0), **given)


def counted(n=4, seed=0):
    """With repeats: some tasks have fewer examples than they might be asked for."""
    sizes = np.random.default_rng(seed).integers(40, 400, n)
    return law(n, seed, budget=500, sizes=sizes, seen=200)


def mixtures(n, count, seed=0):
    return np.random.default_rng(seed).dirichlet(np.full(n, 0.5), count)


def divergence(p, prior, strength):
    """strength * KL of p, with a thousandth of the prior in it, from the prior."""
    mixed, live = (p + 1e-3 * prior) / 1.001, prior > 0
    return strength * (mixed[..., live] * np.log(mixed[..., live] / prior[live])).sum(-1)


def certified(found):
    return found.gap <= 1e-9 * max(1, abs(found.energy))


LAWS = {"shares": law, "repeats": counted}


@pytest.mark.parametrize("make", LAWS.values(), ids=LAWS)
def test_every_task_is_convex_in_the_mixture(make):
    one, a, b = make(), mixtures(4, 200), mixtures(4, 200, 1)
    middle = one.per_task((a + b) / 2)
    assert (middle <= (one.per_task(a) + one.per_task(b)) / 2 + 1e-12).all()
    assert (middle < (one.per_task(a) + one.per_task(b)) / 2 - 1e-4).any()


@pytest.mark.parametrize("make", LAWS.values(), ids=LAWS)
def test_more_of_a_helpful_task_never_hurts(make):
    one = make()
    p = mixtures(4, 50)
    for i in range(4):
        assert (one.per_task(p + 0.1 * np.eye(4)[i]) <= one.per_task(p)).all()


def test_alone_a_task_is_learnt_as_by_its_own_run():
    matrix = np.array([[2.5, 3.0], [3.0, 2.5]])
    one = PredictedLoss.from_losses(matrix, [3.0, 3.0], budget=100, seen=[25, 75])
    # A run is 50 examples, the median of both: half of the weight is a task's own run.
    np.testing.assert_allclose(one.per_task([0.5, 0.5]), [2.5, 2.5])
    np.testing.assert_allclose(one.per_task([1.0, 0.0])[1], 3.0)
    assert one.per_task([1.0, 0.0])[0] < 2.5


def test_a_run_teaches_as_much_however_many_examples_its_rows_hold():
    matrix = losses()
    short = PredictedLoss.from_losses(matrix, budget=100, seen=[10, 20, 40, 400])
    same = PredictedLoss.from_losses(matrix, budget=100, seen=30)
    p = mixtures(4, 20)
    np.testing.assert_allclose(short.per_task(p), same.per_task(p))


def test_repeats_teach_less():
    matrix = np.array([[1.5, 3.0], [3.0, 1.5]])
    few = PredictedLoss.from_losses(matrix, budget=100, sizes=[20, 1000], seen=20)
    many = PredictedLoss.from_losses(matrix, budget=100, sizes=[1000, 1000], seen=20)
    assert few.per_task([0.9, 0.1])[0] > many.per_task([0.9, 0.1])[0]
    assert few.minimise().weights[0] < many.minimise().weights[0] == pytest.approx(0.5)


def test_harm_and_a_lucky_model_are_taken_with_care():
    matrix = losses()
    harmful, lucky = matrix.copy(), matrix.copy()
    harmful[1, 2] = 9.0  # what harms is only no help: in a mixture the harm does not last
    matrix[1, 2] = 3.0
    same = PredictedLoss.from_losses(harmful, np.full(4, 3.0))
    np.testing.assert_allclose(same.rate, PredictedLoss.from_losses(matrix, np.full(4, 3.0)).rate)
    lucky[0, 0] = 1e-3
    assert np.isfinite(PredictedLoss.from_losses(lucky).rate).all()


def test_what_is_left_out_is_harmed_and_a_little_of_it_prevents_that():
    matrix = np.array([[1.0, 3.0, 3.0], [3.0, 1.0, 3.0], [3.0, 3.0, 1.0]])
    harmed = matrix + [[0, 0, 2.0], [0, 0, 2.0], [0, 0, 0]]  # training on others ruins task 2
    one = PredictedLoss.from_losses(harmed, np.full(3, 3.0))
    calm = PredictedLoss.from_losses(matrix, np.full(3, 3.0))
    without, little = one.per_task([[0.5, 0.5, 0.0], [0.45, 0.45, 0.1]])[:, 2]
    assert without == pytest.approx(5.0) and calm.per_task([0.5, 0.5, 0.0])[2] == pytest.approx(3.0)
    # A tenth of the mixture undoes nearly all of the harm, and not nearly all that is to be learnt.
    assert little - calm.per_task([0.45, 0.45, 0.1])[2] < 0.2 < little - 1.0
    assert one.minimise().weights[2] > calm.minimise().weights[2]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("make", LAWS.values(), ids=LAWS)
def test_no_mixture_of_a_grid_is_better(n, make):
    one = make(n)
    cap = np.full(n, 0.6) if n > 1 else None
    grid = 20
    points = np.array(
        [
            p
            for p in itertools.product(range(grid + 1), repeat=n)
            if sum(p) == grid and (cap is None or max(p) <= 0.6 * grid)
        ]
    )
    best = one.loss(points / grid).min()
    found = one.minimise(cap=cap)
    assert certified(found) and abs(found.weights.sum() - 1) < 1e-12
    assert found.weights.min() >= 0 and (cap is None or (found.weights <= cap + 1e-12).all())
    assert found.energy == pytest.approx(float(one.loss(found.weights)), abs=1e-12)
    assert best - 0.05 < found.energy <= best + 1e-9


def test_two_tasks_apart_have_a_closed_form():
    # At the optimum the slopes are equal: (1 + a p / 2)^-3 = 2 (1 + a (1 - p) / 2)^-3.
    matrix = np.array([[1.0, 3.0], [3.0, 1.0]])
    one = PredictedLoss.from_losses(matrix, [3.0, 3.0])
    a = one.rate[0, 0, 0]
    found = one.minimise(np.array([1.0, 2.0]))
    c = 2 ** (1 / 3)
    assert found.weights[0] == pytest.approx((1 + a / 2 - c) / (a / 2 * (1 + c)), abs=1e-7)


@pytest.mark.parametrize("strength", [1e-4, 0.03, 1.0])
@pytest.mark.parametrize("cap", [None, 0.4])
def test_the_pull_to_a_prior_is_certified(strength, cap):
    one, prior = counted(6), np.array([1, 2, 3, 4, 5, 6]) / 21
    found = one.minimise(cap=cap, prior=prior, strength=strength)

    def value(p):
        return one.loss(p) + divergence(p, prior, strength)

    assert certified(found) and found.energy == pytest.approx(value(found.weights), abs=1e-9)
    tried = mixtures(6, 3000)
    tried = tried[(tried <= (cap or 1)).all(1)]
    near = 0.98 * found.weights + 0.02 * tried
    assert min(value(tried).min(), value(near).min()) >= found.energy - found.gap


def test_the_pull_leads_from_the_minimiser_to_the_prior():
    one, prior = law(5), np.full(5, 0.2)
    near = [one.minimise(prior=prior, strength=s).weights for s in (1e-7, 1e-2, 1e4)]
    np.testing.assert_allclose(near[0], one.minimise().weights, atol=1e-3)
    np.testing.assert_allclose(near[2], prior, atol=1e-4)
    assert (
        one.minimise(prior=prior).weights == one.minimise(prior=prior, strength=0.1).weights
    ).all()


def test_an_average_over_resamples_is_the_mean_of_its_laws():
    drawn = np.stack([losses(seed=s) for s in range(3)])
    together = PredictedLoss.from_losses(drawn)
    p = mixtures(4, 7)
    apart = [PredictedLoss.from_losses(one).per_task(p) for one in drawn]
    np.testing.assert_allclose(together.per_task(p), np.mean(apart, 0))
    assert certified(together.minimise())


def test_batches_and_transformations():
    one, p = counted(), mixtures(4, 6)
    batch = one.per_task(p.reshape(2, 3, 4))
    assert batch.shape == (2, 3, 4) and batch.dtype == np.float64
    np.testing.assert_allclose(batch.reshape(6, 4), np.stack([one.per_task(x) for x in p]))
    with jax.enable_x64(True):
        slope = jax.grad(lambda x: one.per_task(x)[0])(jax.numpy.asarray(p[0]))
    step = 1e-6 * np.eye(4)[1]
    by_hand = (one.per_task(p[0] + step) - one.per_task(p[0] - step))[0] / 2e-6
    assert slope[1] == pytest.approx(by_hand, rel=1e-5)


BOUNDS = Bounds(low=[0.0, 0, 0.2, 0, 0, 0], family=[0, 0, 1, 1, 2, 2], family_high=[0.3, 1, 0.4])
CAP = [0.25, 1, 1, 1, 1, 0.0]


@pytest.fixture(scope="module")
def allowed():
    """Mixtures within BOUNDS and CAP, half without task 1: minimisers of other importances."""
    rng, caps = np.random.default_rng(0), (CAP, [0.25, 0, 1, 1, 1, 0.0])
    drawn = [(rng.dirichlet(np.ones(6)), caps[i % 2]) for i in range(40)]
    return np.array([counted(6).minimise(w, cap, bounds=BOUNDS).weights for w, cap in drawn])


@pytest.mark.parametrize("prior", [None, np.full(6, 1 / 6), [0.5, 0, 0.1, 0.1, 0.1, 0.2]])
def test_bounds_of_tasks_and_families(prior, allowed):
    one = counted(6)
    found = one.minimise(cap=CAP, bounds=BOUNDS, prior=prior)
    p = found.weights
    sums = np.array([p[:2].sum(), p[2:4].sum(), p[4:].sum()])
    assert p[2] >= 0.2 - 1e-12 and p[5] == 0 and p[0] <= 0.25 and abs(p.sum() - 1) < 1e-12
    assert (sums <= np.array([0.3, 1, 0.4]) + 1e-12).all()
    assert certified(found) and (prior is None or p[1] == 0 or prior[1] > 0)

    def value(q):
        return one.loss(q) + (0.0 if prior is None else divergence(q, np.asarray(prior), 0.1))

    tried = allowed
    if prior is not None:
        tried = tried[(tried[:, np.asarray(prior) == 0] == 0).all(1)]
    assert len(tried) >= 20
    for share in (0.01, 0.3, 1.0):
        assert value((1 - share) * p + share * tried).min() >= found.energy - found.gap


def test_what_a_task_is_worth_decides():
    one = law(6)
    only = one.minimise(np.eye(6)[2]).weights
    assert one.per_task(only)[2] <= one.per_task(mixtures(6, 200))[:, 2].min() + 1e-9


def test_targets_are_judged_but_not_mixed():
    matrix = np.full((3, 4), 3.0)
    matrix[np.arange(3), np.arange(3)] = 1.0
    matrix[1, 3] = 1.0  # model 1 teaches the target
    one = PredictedLoss.from_losses(matrix, np.full(4, 3.0))
    assert one.per_task(np.full((2, 3), 1 / 3)).shape == (2, 4)
    only = one.minimise([0, 0, 0, 1.0])
    np.testing.assert_allclose(only.weights, [0, 1, 0], atol=1e-9)
    assert one.minimise().weights.argmax() == 1 and certified(one.minimise())


def test_many_tasks_are_certified():
    one = counted(120, seed=3)
    found = one.minimise(cap=0.05)
    assert certified(found) and 1 < found.support <= 120


# --- The ratio that is predicted to be worth most ---
def twins(n=6):
    """An affinity of one redundant family of three, and the law that goes with it."""
    family = np.array([0, 0, 0, 1, 2, 3])
    together = family[:, None] == family
    S = np.where(together, 0.9, 0.0) + 0.1 * np.eye(n)
    return S, PredictedLoss.from_losses(np.where(together, 1.0, 3.0), np.full(n, 3.0))


@pytest.mark.parametrize("importance", [None, np.array([1, 1, 1, 3, 3, 3.0])])
def test_no_ratio_of_a_grid_is_better(importance):
    S, one = twins()
    path = ratio_path(S, ratio_max=3.0)
    found = choose_ratio(path, one, importance)
    grid = np.linspace(0, 3, 3001)
    w = np.full(6, 1 / 6) if importance is None else importance / importance.sum()
    assert found.loss <= one.loss(path.at(grid), w).min() + 1e-12
    np.testing.assert_allclose(found.weights, path.at(found.ratio))
    assert found.loss == pytest.approx(float(one.loss(found.weights, w)), abs=1e-9)
    np.testing.assert_allclose(found.along, one.loss(path.weights, w))
    exact = solve_exact(energy_from_affinity(S, found.ratio)).weights
    np.testing.assert_allclose(found.weights, exact, atol=1e-8)


def test_the_best_ratio_may_lie_between_breakpoints():
    ends = np.array([[1.0, 0.0], [0.0, 1.0]])
    path = Path(np.array([0.0, 2.0]), ends, np.zeros(2), np.zeros(2))
    one = PredictedLoss.from_losses([[1.0, 3.0], [3.0, 1.0]])
    assert choose_ratio(path, one).ratio == pytest.approx(1.0)
    only = Path(np.array([0.0]), ends[:1], np.zeros(1), np.zeros(1))
    assert choose_ratio(only, one).ratio == 0


# --- What is refused ---
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: PredictedLoss.from_losses(np.ones((3, 2))), "n, k"),
        (lambda: PredictedLoss.from_losses([[1.0, np.nan], [1.0, 1.0]]), "finite"),
        (lambda: PredictedLoss.from_losses([[1.0, -1.0], [1.0, 1.0]]), "positive"),
        (lambda: PredictedLoss.from_losses(losses(), [3.0, 0, 3, 3]), "base must be positive"),
        (lambda: PredictedLoss.from_losses(losses(), [3.0]), "base"),
        (lambda: PredictedLoss.from_losses([[1.0]]), "give base"),
        (lambda: law(sizes=[9, 9, 9, 9]), "budget"),
        (lambda: law(budget=9, sizes=[9, 9]), "sizes has shape"),
        (lambda: law(budget=9, seen=[9, 9, 0, 9]), "seen must be positive"),
        (lambda: law(pace=-1.0), "pace"),
        (lambda: law().per_task([0.5, 0.5]), "2 entries where there are 4"),
        (lambda: law().minimise([1.0, 1, 1]), "task_weights has 3"),
        (lambda: law().minimise([1.0, 1, -1, 1]), "not negative"),
        (lambda: law().minimise(cap=0.1), "infeasible caps"),
        (lambda: law().minimise(strength=-1.0), "strength=-1"),
        (lambda: law().minimise(prior=[0.5, 0.5, 0.5, 0.5]), "prior"),
        (lambda: choose_ratio(ratio_path(np.eye(3), ratio_max=1), law()), "3 tasks"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said):
        call()
