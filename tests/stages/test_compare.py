"""Every row of the table of mixtures, on one small affinity, and the names of rows."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from taskpgm import mixture
from taskpgm.mixture import baselines
from taskpgm.stages import default_config
from taskpgm.stages.choosing import with_runs
from taskpgm.stages.compare import caps, check, folder_name, make, parse
from taskpgm.stages.mixture_inputs import EMBEDDINGS, LIKELIHOODS, Inputs
from taskpgm.stages.ratio import read_ratio
from taskpgm.stages.rows import ROWS

TASKS = ["a", "b", "c", "d", "e"]
NEEDED = {f"select-{kind}": ":k=2" for kind in ("pmi", "jsd", "transfer")}
NEEDED["regmix"] = ":regressor=ridge,simulated=200"


@pytest.fixture
def inputs():
    noise = np.random.default_rng(0).normal(size=(5, 5))
    size = np.array([10, 20, 30, 40, 100])
    config = default_config().mixture.to_dict() | {"budget": 60, "max_epochs": 1.0}
    S = noise @ noise.T
    families = ["x", "x", "x", "y", "z"]
    share = np.eye(5) + 0.1 * noise
    scores = {
        "log_likelihood": -np.abs(np.random.default_rng(1).normal(size=(5, 15))),
        "tokens": np.arange(1, 16),
        "task": np.repeat(np.arange(5), [1, 2, 3, 4, 5]),
    }
    random = np.random.default_rng(2).dirichlet(np.ones(5), 12)
    drawn = {"mixtures": random, "losses": 2 - random**2, "prior": random[0]}
    return Inputs(
        TASKS,
        families,
        {"pmi": S, "jsd": S},
        {},
        size,
        caps(size, 60, 1.0),
        config,
        seed=0,
        share=share,
        predicted=mixture.PredictedLoss.from_losses(2.0 - share.clip(0, 1), base=[2.0] * 5),
        evidence={
            LIKELIHOODS: lambda: scores,
            EMBEDDINGS: lambda: {"embeddings": 1 + noise},
            "regmix:regressor=ridge,simulated=200": lambda: drawn,
            "doremi": lambda: {"weights": drawn["prior"]},
            "skill-it": lambda: drawn | {"weights": drawn["mixtures"]},
            "less": lambda: {"influence": random, "task": np.arange(12) % 5},
        },
    )


def weights_of(name, inputs):
    _, _, made = make(name, with_runs(inputs, name))
    return np.asarray(getattr(made, "weights", made))


@pytest.mark.parametrize("name", [name for name in ROWS if name != "weights"])
def test_it_is_a_mixture(name, inputs):
    weights = weights_of(name + NEEDED.get(name, ""), inputs)
    assert weights.shape == (5,)
    assert weights.min() >= 0 and abs(weights.sum() - 1) < 1e-9


def test_caps_hold_what_a_task_has(inputs):
    assert (weights_of("taskpgm-pmi", inputs) * 60 <= inputs.sizes + 1e-6).all()


def test_a_permuted_affinity_gives_another_mixture(inputs):
    one, other = (weights_of(name, inputs) for name in ("permuted-pmi", "taskpgm-pmi"))
    assert not np.allclose(one, other)


def test_arguments_hold_for_their_row_alone(inputs):
    inputs, uniform = replace(inputs, cap=None), np.full(5, 0.2)
    assert np.allclose(weights_of("taskpgm-pmi:r=1", inputs), uniform, atol=1e-9)
    assert not np.allclose(weights_of("taskpgm-pmi:r=0", inputs), uniform)
    assert np.allclose(
        weights_of("taskpgm-pmi:method=closed_form,r=4", inputs),
        weights_of("closed-form-pmi:r=4", inputs),
    )
    indefinite = replace(inputs, affinities={"pmi": inputs.affinities["pmi"] - 2 * np.eye(5)})
    repaired = [weights_of(f"closed-form-pmi:psd={x}", indefinite) for x in ("shift", "clip")]
    assert not np.allclose(*repaired)
    capped = weights_of("size-proportional:cap=20", inputs)
    assert np.allclose(capped, np.array([10, 20, 20, 20, 20]) / 90)
    assert np.allclose(weights_of("softmax-pmi:beta=0", inputs), uniform)


def test_selection_keeps_k_tasks(inputs):
    for k in (1, 3):
        assert (weights_of(f"select-pmi:k={k}", inputs) > 0).sum() <= k
    with pytest.raises(ValueError, match="k=6 of 5 tasks"):
        weights_of("select-pmi:k=6", inputs)


@pytest.mark.parametrize("name", ["select-pmi:k=6", "smart:k=6", "clustered-jsd:clusters=6"])
def test_more_tasks_than_there_are_are_refused_before_anything_is_made(name):
    config = default_config()
    config.compare, config.mixture.budget = (name,), 10
    with pytest.raises(ValueError, match=f"compare: '{name}': .*=6 of 5 tasks"):
        check(config, np.full(5, 100))


def test_mixmin_counts_tasks_by_their_importance(inputs, tmp_path):
    only = tmp_path / "importance.json"
    only.write_text(json.dumps({"b": 1}))
    given = replace(inputs, config=inputs.config | {"importance": str(only)})
    scores = inputs.found(LIKELIHOODS)
    own = scores["task"] == 1
    alone = baselines.mixmin(scores["log_likelihood"][:, own], scores["tokens"][own])
    np.testing.assert_allclose(weights_of("mixmin", given), alone)
    assert not np.allclose(weights_of("mixmin", inputs), alone)


def test_rows_of_embeddings_take_their_arguments(inputs):
    embeddings = inputs.found(EMBEDDINGS)["embeddings"]
    np.testing.assert_allclose(
        weights_of("smart:k=2,function=graph-cut", inputs),
        baselines.smart(embeddings, 2, function="graph cut"),
    )
    np.testing.assert_allclose(
        weights_of("chameleon:ridge=1,temperature=0.5", inputs),
        baselines.chameleon(embeddings, ridge=1.0, temperature=0.5),
    )
    np.testing.assert_allclose(
        weights_of("clustered-pmi:clusters=2,beta=1,lam=2", inputs),
        baselines.clustered(
            inputs.affinity("pmi"), embeddings, clusters=2, beta=1.0, lam=2.0, seed=0
        ),
    )


def test_rows_with_runs_are_made_of_what_their_runs_found(inputs):
    found = inputs.evidence["skill-it"]()
    np.testing.assert_allclose(weights_of("skill-it", inputs), found["weights"].mean(0))
    np.testing.assert_allclose(weights_of("doremi", inputs), found["prior"])
    name = "regmix" + NEEDED["regmix"]
    made = baselines.regmix(
        found["mixtures"],
        found["losses"].mean(1),
        prior=found["prior"],
        regressor="ridge",
        simulated=200,
    )
    np.testing.assert_allclose(weights_of(name, inputs), made)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("regmix", "pip install 'taskpgm.regmix.'.*regressor=ridge"),
        ("regmix:regressor=ridge,best=9,simulated=8", "best=9 is more than simulated=8"),
        ("doremi:smoothing=2", "smoothing=2 has to be a number >= 0 and <= 1"),
        ("skill-it:rounds=0", "rounds=0 has to be a whole number"),
    ],
)
def test_runs_that_could_not_be_used_are_refused_before_they_are_made(name, said, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = default_config()
    config.compare = (name,)
    with pytest.raises((ValueError, ImportError), match=said):
        check(config, None)


def test_the_graph_laplacian_has_the_authors_ratio(inputs):
    given = weights_of("graph-laplacian-jsd", inputs)
    np.testing.assert_allclose(given, weights_of("graph-laplacian-jsd:r=2.5", inputs))
    assert not np.allclose(given, weights_of("graph-laplacian-jsd:r=0", inputs))


def test_uniform_over_families(inputs):
    assert np.allclose(weights_of("uniform-families", inputs), [1 / 9] * 3 + [1 / 3] * 2)


def test_weights_of_a_file(inputs, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"a": 1, "c": 3}))
    assert np.allclose(weights_of(f"weights:file={path}", inputs), [0.25, 0, 0.75, 0, 0])
    for text, said in (
        ("{", "not a JSON object"),
        ('{"f": 1}', "'f' is no task"),
        ('{"a": -1}', "none below 0"),
        ('{"a": 0}', "not all 0"),
        ('{"a": NaN}', "finite"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=said):
            weights_of(f"weights:file={path}", inputs)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("unifrom", "did you mean 'uniform'"),
        ("taskpgm-pmi:r=high", "r=high has to be"),
        ("taskpgm-pmi:r=-1", "r=-1 has to be a number >= 0"),
        ("taskpgm-pmi:r=nan", "r=nan has to be a number >= 0"),
        ("taskpgm-pmi:k=3", "'k=3' is no argument; taskpgm-pmi has r, psd, floor, method"),
        ("taskpgm-pmi:r", "'r' is no argument"),
        ("taskpgm-pmi:psd=none", "psd=none has to be one of"),
        ("select-pmi", "needs k, as in select-pmi:k=..."),
        ("select-pmi:k=0", "k=0 has to be a whole number >= 1"),
        ("uniform:r=1", "uniform has none"),
        ("weights", "needs file"),
        ("weights:file=/no/such.json", "there is none"),
    ],
)
def test_a_name_that_means_nothing_is_refused(name, said):
    with pytest.raises(ValueError, match="compare: .*") as refused:
        parse(name)
    assert said in str(refused.value)


def test_a_name_becomes_a_folder():
    assert folder_name("taskpgm-pmi:r=4") == "taskpgm-pmi:r=4"
    assert folder_name("weights:file=a/b.json") == "weights:file=a_b.json"


def test_a_budget_beyond_the_data_is_refused():
    with pytest.raises(ValueError, match="mixture.budget=201 is larger than the data allow: 200"):
        caps(np.array([100, 100]), 201, 1.0)


def test_an_empty_comparison_is_refused():
    section = SimpleNamespace(method="exact", budget=1, max_epochs=1.0, ratio="auto")
    given = SimpleNamespace(matrix="")
    with pytest.raises(ValueError, match="compare is empty"):
        check(SimpleNamespace(compare=(), mixture=section, affinity=section), None)
    check(SimpleNamespace(compare=("uniform", "uniform"), mixture=section, affinity=given), None)


def test_the_ratio_is_chosen_by_predicted_loss(inputs):
    chosen = mixture.choose_ratio(inputs.path("pmi"), inputs.predicted).ratio
    assert inputs.ratio("pmi") == pytest.approx(chosen, abs=1e-9)
    fixed = replace(inputs, config=inputs.config | {"ratio": "pmi=3,jsd=auto"})
    assert fixed.ratio("pmi") == 3.0
    assert fixed.ratio("jsd") == pytest.approx(chosen, abs=1e-9)  # the same matrix here


@pytest.mark.parametrize("ratio", ["-1", "high", "pmi=1,pmi=2", "mi=1", "inf", ""])
def test_what_is_no_ratio_is_refused(ratio):
    with pytest.raises(ValueError):
        read_ratio(ratio)


def test_importance_moves_every_mixture_of_ours(inputs, tmp_path):
    only = tmp_path / "importance.json"
    only.write_text(json.dumps({"a": 3, "x": 1}))
    given = replace(inputs, config=inputs.config | {"importance": str(only), "ratio": "1.5"})
    assert given.importance == pytest.approx(np.array([10 / 3, 1 / 3, 1 / 3, 0, 0]) / 4)
    alike = replace(inputs, config=inputs.config | {"ratio": "1.5"})
    for name in ("taskpgm-pmi", "taskpgm-jsd", "taskpgm-transfer", "taskpgm-predicted"):
        assert np.abs(weights_of(name, given) - weights_of(name, alike)).max() > 1e-3, name


def test_importance_of_an_unknown_task_is_refused(inputs, tmp_path):
    (tmp_path / "importance.json").write_text(json.dumps({"nobody": 1}))
    path = str(tmp_path / "importance.json")
    with pytest.raises(ValueError, match="'nobody' is neither a task nor a family"):
        _ = replace(inputs, config=inputs.config | {"importance": path}).importance


def test_the_predicted_mixture_is_worth_at_least_uniform(inputs):
    best = weights_of("taskpgm-predicted:strength=0", replace(inputs, cap=None))
    assert inputs.predicted.loss(best) <= inputs.predicted.loss(np.full(5, 0.2)) + 1e-9


def test_without_losses_what_needs_them_is_refused():
    config = default_config()
    config.affinity.matrix = "S.npy"
    for rows, message in (
        (("taskpgm-predicted",), "taskpgm-predicted.*needs the losses"),
        (("mixmin",), "mixmin.*needs the losses"),
        (("smart",), "smart.*asks a model"),
        (("doremi",), "doremi.*asks a model"),
        (("clustered-pmi",), "clustered-pmi.*asks a model"),
        (("select-transfer:k=1",), "select-transfer.*needs the losses"),
        (("taskpgm-pmi",), "mixture.ratio=auto.*--config.mixture.ratio=2"),
    ):
        config.compare = rows
        with pytest.raises(ValueError, match=message):
            check(config, None)
