import itertools

import numpy as np
import pytest

from taskpgm.mixture import baselines, energy_from_affinity, make_positive_definite, solve_exact
from tests.mixture.matrices import affinity, gap

HELPERS = {
    "Greedy",
    "check_regressor",
    "cosine_similarity",
    "dirichlet_mixtures",
    "doremi_update",
    "excess_loss",
    "facility_location",
    "graph_cut",
    "influence",
    "permuted_affinity",
}
S = affinity(6)
X = np.random.default_rng(0).normal(size=(6, 4)) + 1
RUNS = np.random.default_rng(1).dirichlet(np.ones(6), 20)
ARGUMENTS = {
    "chameleon": (X,),
    "clustered": (S, X),
    "doremi": (np.abs(S),),
    "graph_laplacian": (S, 2.0),
    "less": (RUNS, np.arange(20) % 6, [5, 4, 3, 2, 1, 9]),
    "mixmin": (-np.abs(S),),
    "permuted": (S, 2.0),
    "pure_diversity": (S,),
    "random_instances": ([5, 4, 3, 2, 1, 9], 12),
    "regmix": (RUNS, RUNS[:, 0]),
    "size_proportional": ([5, 4, 3, 2, 1, 9],),
    "skill_it": (S, np.abs(S[:2])),
    "smart": (X, 3),
    "softmax_rows": (S,),
    "uniform": (6,),
    "uniform_families": ([0, 0, 0, 1, 1, 2],),
}


def is_mixture(p):
    return p.dtype == np.float64 and (p >= 0).all() and abs(p.sum() - 1) < 1e-12


def test_uniform_and_sizes():
    np.testing.assert_array_equal(baselines.uniform(4), [0.25] * 4)
    sizes = [100, 300, 0, 600]
    np.testing.assert_allclose(baselines.size_proportional(sizes), [0.1, 0.3, 0, 0.6])
    np.testing.assert_allclose(
        baselines.size_proportional(sizes, cap=300), np.array([1, 3, 0, 3]) / 7
    )
    warm = baselines.size_proportional(sizes, temperature=2.0)
    np.testing.assert_allclose(warm, np.sqrt([1, 3, 0, 6]) / np.sqrt([1, 3, 0, 6]).sum())
    flat = baselines.size_proportional(sizes, temperature=np.inf)
    np.testing.assert_allclose(flat, [1 / 3, 1 / 3, 0, 1 / 3])
    assert is_mixture(baselines.size_proportional([10**15, 1], temperature=0.01))
    for bad in (
        lambda: baselines.uniform(0),
        lambda: baselines.size_proportional([0, 0]),
        lambda: baselines.size_proportional([1, -1]),
        lambda: baselines.size_proportional([1], cap=0),
        lambda: baselines.size_proportional([1], temperature=0),
    ):
        with pytest.raises(ValueError):
            bad()


def test_random_instances_are_drawn_without_replacement_from_the_union():
    sizes = np.array([5, 0, 50, 500])
    everything = baselines.random_instances(sizes, 555, seed=1)
    np.testing.assert_allclose(everything, sizes / 555)
    some = np.array([baselines.random_instances(sizes, 100, seed=s) for s in range(300)])
    np.testing.assert_allclose(some.mean(0), sizes / 555, atol=0.005)
    np.testing.assert_allclose(some * 100, np.round(some * 100), atol=1e-12)
    np.testing.assert_array_equal(
        baselines.random_instances(sizes, 9, seed=3), baselines.random_instances(sizes, 9, seed=3)
    )
    with pytest.raises(ValueError, match="budget=556"):
        baselines.random_instances(sizes, 556)


def test_controls():
    s = affinity(12)
    rows = s.sum(1)
    expected = np.exp(0.1 * (rows - rows.max()))
    np.testing.assert_allclose(baselines.softmax_rows(s, beta=0.1), expected / expected.sum())
    assert is_mixture(baselines.softmax_rows(s * 1e6))
    w = np.linalg.solve(make_positive_definite(s, "shift"), np.ones(12))
    if (w >= 0).all():
        np.testing.assert_allclose(baselines.pure_diversity(s, psd="shift"), w / w.sum())
    assert is_mixture(baselines.pure_diversity(s))
    shuffled = baselines.permuted_affinity(s, seed=5)
    np.testing.assert_allclose(np.linalg.eigvalsh(shuffled), np.linalg.eigvalsh(s), atol=1e-12)
    assert not np.isclose(shuffled.sum(1), rows).any()  # no task kept its row
    np.testing.assert_array_equal(baselines.permuted_affinity(np.ones((1, 1))), [[1.0]])


def greedy(function, n, k):
    chosen, gains = [], []
    for _ in range(k):
        now = function(chosen)
        added = [function([*chosen, i]) - now if i not in chosen else -np.inf for i in range(n)]
        chosen.append(int(np.argmax(added)))
        gains.append(max(added))
    return chosen, gains


def test_smart_is_greedy_on_its_two_functions():
    x = np.abs(np.random.default_rng(0).normal(size=(20, 5)))
    s = baselines.cosine_similarity(x)
    np.testing.assert_allclose(np.diag(s), 1)

    def location(a):
        return s[:, a].max(1).sum() if a else 0.0

    def cut(a):
        return s[:, a].sum() - 0.4 * s[np.ix_(a, a)].sum() if a else 0.0

    for made, function in ((baselines.facility_location, location), (baselines.graph_cut, cut)):
        found = made(s, 8)
        order, gains = greedy(function, 20, 8)
        np.testing.assert_array_equal(found.order, order)
        np.testing.assert_allclose(found.gains, gains)

    for name, made in (("facility location", "facility_location"), ("graph cut", "graph_cut")):
        found = getattr(baselines, made)(s, 8)
        p = baselines.smart(x, 8, function=name)
        share = 1 + found.gains + found.gains**2 / 2
        np.testing.assert_allclose(p[found.order], share / share.sum())
        assert is_mixture(p) and (p > 0).sum() == 8
    with pytest.raises(ValueError, match="facility location, graph cut"):
        baselines.smart(x, 8, function="cut")
    with pytest.raises(ValueError, match="k=21"):
        baselines.facility_location(s, 21)


def test_doremi():
    proxy, reference = np.array([2.0, 1.0, 5.0, 1.0]), np.array([1.0, 3.0, 1.0, 1.0])
    excess = baselines.excess_loss(proxy, reference, np.array([0, 0, 1, 3]), 4)
    np.testing.assert_allclose(excess, [0.5, 4.0, 0, 0])
    w = baselines.doremi_update(np.full(4, 0.25), excess, rate=0.5, smoothing=0.1)
    raw = np.exp(0.5 * excess)
    np.testing.assert_allclose(w, 0.9 * raw / raw.sum() + 0.1 / 4)
    again = baselines.doremi_update(w, 2 * excess, rate=0.5, smoothing=0.1)
    averaged = baselines.doremi([excess, 2 * excess], rate=0.5, smoothing=0.1)
    np.testing.assert_allclose(averaged, (w + again) / 2)
    with pytest.raises(ValueError, match="steps, n"):
        baselines.doremi(excess)
    assert is_mixture(baselines.doremi_update(np.full(4, 0.25), excess * 1e4))


def test_regmix_finds_a_better_mixture_than_any_it_saw():
    best = np.array([0.6, 0.3, 0.1, 0.0])

    def loss(p):
        return ((p - best) ** 2).sum(-1)

    settings = {"simulated": 20_000, "regressor": "ridge"}
    runs = baselines.dirichlet_mixtures(np.full(4, 0.25), 200, seed=0)
    found = baselines.regmix(runs, loss(runs), **settings)
    assert is_mixture(found)
    assert loss(found) < np.quantile(loss(runs), 0.05)
    again = baselines.regmix(runs, loss(runs), **settings)
    np.testing.assert_array_equal(found, again)
    with pytest.raises(ValueError, match="none of lightgbm, ridge"):
        baselines.regmix(runs, loss(runs), regressor="forest")


def test_the_mixtures_of_regmix_are_drawn_as_the_authors_draw_them():
    prior = np.array([0.1, 0.2, 0.3, 0.4])
    drawn = baselines.dirichlet_mixtures(7 * prior, 20_000, seed=1)
    np.testing.assert_allclose(drawn.sum(1), 1)
    assert (drawn[drawn > 0] >= 2e-4).all() and (drawn == 0).any()
    np.testing.assert_allclose(drawn.mean(0), prior, atol=0.01)
    # Of a Dirichlet with strength c the variance is p (1 - p) / (c + 1), here averaged over c.
    spread = (1 / (np.logspace(-1, np.log10(5), 15) + 1)).mean()
    np.testing.assert_allclose(drawn.var(0), prior * (1 - prior) * spread, rtol=0.05)


def test_without_its_package_the_papers_regressor_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install 'taskpgm.regmix.'"):
        baselines.regmix(RUNS, RUNS[:, 0])


def test_the_papers_regressor_finds_the_better_task():
    pytest.importorskip("lightgbm")
    runs = baselines.dirichlet_mixtures(np.full(3, 1.0), 128, seed=2)
    found = baselines.regmix(runs, runs @ np.array([1.0, 2.0, 3.0]), simulated=5000)
    assert is_mixture(found) and found[0] > 0.9


def test_skill_it():
    a = np.array([[1.0, 0.5, -2.0], [0.0, 1.0, 0.25], [0.0, 0.0, 1.0]])
    losses = np.array([[9.0, 9.0, 9.0], [1.0, 2.0, 3.0], [0.5, 0.25, 0.0], [1.0, 1.0, 2.0]])
    helps = np.maximum(a, 0)
    for told, recent in ((losses, losses[1:].sum(0)), (losses[:2], [10, 11, 12]), ([], [1, 1, 1])):
        found = baselines.skill_it(a, np.reshape(told, (-1, 3)), rate=0.3)
        expected = np.exp(0.3 * helps @ recent)
        np.testing.assert_allclose(found, expected / expected.sum())
    np.testing.assert_allclose(
        baselines.skill_it(a[:2], losses, rate=0.3).sum(), 1
    )  # one of three is a target
    with pytest.raises(ValueError, match="n by k"):
        baselines.skill_it(a[0], losses)
    with pytest.raises(ValueError, match="rounds, 3"):
        baselines.skill_it(a, losses[:, :2])


def test_mixmin_finds_the_source_of_the_data():
    rng = np.random.default_rng(0)
    models = rng.dirichlet(np.ones(10), 3)
    truth = np.array([0.7, 0.0, 0.3])
    words = rng.choice(10, 4000, p=truth @ models)
    found = baselines.mixmin(np.log(models)[:, words])
    assert is_mixture(found)

    def loss(p):
        return -np.log(p @ models[:, words]).mean()

    grid = np.array(
        [p for p in itertools.product(np.linspace(0, 1, 41), repeat=3) if abs(sum(p) - 1) < 1e-9]
    )
    assert loss(found) <= min(loss(p) for p in grid) + 1e-3
    # Log space holds: sequences whose probability is far below the smallest float.
    low = np.log(models)[:, words[:50]] - 5000
    np.testing.assert_allclose(
        baselines.mixmin(low, np.full(50, 3)),
        baselines.mixmin(low + 5000, np.full(50, 3)),
        rtol=1e-6,
    )


def test_mixmin_is_exponentiated_gradient_on_what_counts():
    rng = np.random.default_rng(3)
    scores, lengths = -rng.gamma(2.0, 2.0, (4, 9)), rng.integers(1, 5, 9)
    share = rng.dirichlet(np.ones(9))
    p = np.full(4, 0.25)
    for _ in range(7):
        likelihood = np.exp(scores)
        slope = -(share / lengths * likelihood / (p @ likelihood)).sum(1)
        p = p * np.exp(-0.5 * slope)
        p /= p.sum()
    settings = {"rate": 0.5, "steps": 7}
    found = baselines.mixmin(scores, lengths, importance=3 * share, **settings)
    np.testing.assert_allclose(found, p, rtol=1e-10)
    alike = baselines.mixmin(scores, lengths, importance=np.ones(9), **settings)
    np.testing.assert_allclose(alike, baselines.mixmin(scores, lengths, **settings))
    with pytest.raises(ValueError, match="importance has to be >= 0"):
        baselines.mixmin(scores, importance=np.zeros(9))


def test_chameleon():
    x = np.random.default_rng(0).normal(size=(6, 3)) * 10
    p = baselines.chameleon(x)
    centred = x - x.mean(0)
    k = centred @ centred.T
    s = np.diag(k @ np.linalg.inv(k + 60 * np.eye(6)))
    e = np.exp(s / s.sum() / 0.2)
    np.testing.assert_allclose(p, e / e.sum())
    np.testing.assert_allclose(baselines.chameleon(np.ones((4, 2))), 0.25)


def test_uniform_over_families():
    p = baselines.uniform_families(["b", "a", "b", "b", "c"])
    np.testing.assert_allclose(p, [1 / 9, 1 / 3, 1 / 9, 1 / 9, 1 / 3])
    np.testing.assert_allclose(baselines.uniform_families([3, 3]), 0.5)
    with pytest.raises(ValueError, match="one label for each task"):
        baselines.uniform_families([])


def test_clusters_get_their_share_and_the_energy_divides_it():
    s = affinity(12)
    where = np.repeat([0.0, 50.0, 90.0], [6, 4, 2])[:, None]
    where = where + np.random.default_rng(0).normal(size=(12, 3))
    p = baselines.clustered(s, where, clusters=3)
    assert is_mixture(p)
    np.testing.assert_allclose([p[:6].sum(), p[6:10].sum(), p[10:].sum()], [1 / 2, 1 / 3, 1 / 6])
    own = energy_from_affinity(s[:6, :6], 6 * 0.25 / 1.25, psd="shift")
    np.testing.assert_allclose(2 * p[:6], solve_exact(own).weights, atol=1e-10)
    one = baselines.clustered(s, where, clusters=1)
    whole = energy_from_affinity(s, 12 * 0.2, psd="shift")
    np.testing.assert_allclose(one, solve_exact(whole).weights, atol=1e-10)
    with pytest.raises(ValueError, match="clusters=13"):
        baselines.clustered(s, where, clusters=13)


@pytest.mark.parametrize("negative", [False, True])
def test_graph_laplacian_is_the_minimiser_of_its_energy(negative):
    s = affinity(12)
    if not negative:
        s = s - s.min()
    p = baselines.graph_laplacian(s, 2.0)
    assert is_mixture(p)
    t = np.exp((s - s.max()) / s.std()) if negative else s
    laplacian = np.diag(t.sum(1)) - t + 1e-4 * np.eye(12)
    assert gap(2.0 * t.sum(1) / 12, laplacian, p) <= 1e-9


def test_permuted_moves_the_exact_mixture_to_other_tasks():
    s = affinity(12)
    p = baselines.permuted(s, 3.0, seed=4)
    exact = solve_exact(energy_from_affinity(s, 3.0)).weights
    np.testing.assert_allclose(np.sort(p), np.sort(exact), atol=1e-10)
    assert np.abs(p - exact).max() > 1e-3
    assert baselines.permuted(s, 3.0, 0.1, seed=4).max() <= 0.1 + 1e-13


@pytest.mark.parametrize("name", sorted(set(baselines.__all__) - HELPERS))
def test_every_baseline_returns_one_mixture_of_all_tasks(name):
    settings = {"clustered": {"clusters": 2}, "regmix": {"regressor": "ridge"}}.get(name, {})
    p = getattr(baselines, name)(*ARGUMENTS[name], **settings)
    assert p.shape == (6,) and is_mixture(p)
