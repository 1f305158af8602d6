"""A made-up workdir of any size, as the stages would write it, without running them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from taskpgm.evaluation import compare_runs
from taskpgm.records import to_json

FAMILIES = ("strings", "numbers", "dates", "encodings", "unicode", "network", "markup", "logic")
MIXTURES = ("uniform", "size-proportional", "taskpgm-pmi", "taskpgm-jsd")


def solve(matrix: np.ndarray, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """(S~, weights): projected gradient is enough for a picture."""
    n = len(matrix)
    values = np.linalg.eigvalsh(matrix)
    shifted = matrix + max(0.0, 1e-3 * np.abs(values).max() - values[0]) * np.eye(n)
    target = ratio * matrix.sum(1) / n
    p = np.full(n, 1 / n)
    step = 1 / np.linalg.eigvalsh(shifted)[-1]
    for _ in range(3000):
        y = p - step * (shifted @ p - target)
        ordered = np.sort(y)[::-1]
        level = (np.cumsum(ordered) - 1) / np.arange(1, n + 1)
        p = np.maximum(y - level[np.flatnonzero(ordered > level)[-1]], 0)
    return shifted, p / p.sum()


def compare_again(results: dict, family: dict[str, str]) -> None:
    """What the stage says of how the runs compare, from the losses of their tasks and seeds."""
    losses = {}
    for name, run in results["runs"].items():
        own = {task: report["loss"] for task, report in run["tasks"].items()}
        losses[name] = [each["losses"] for each in run.get("seeds", ())] or [own]
    results["comparison"] = {
        "tasks": to_json(compare_runs(losses)),
        "families": to_json(compare_runs(losses, family)),
    }


def make(
    workdir: Path,
    n: int = 26,
    families: int = 8,
    winner: str = "taskpgm-pmi",
    seeds: int = 1,
    spread: float = 0.004,
) -> Path:
    rng = np.random.default_rng(0)
    sizes_of = np.maximum(1, rng.multinomial(n - families, [1 / families] * families) + 1)
    sizes_of[-1] += n - sizes_of.sum()
    of = np.repeat(np.arange(families), sizes_of)
    labels = [FAMILIES[f] if f < len(FAMILIES) else f"family {f}" for f in range(families)]
    names = [f"{labels[f]}/task_{i}_{'abcdefghij'[: 1 + i % 10]}" for i, f in enumerate(of)]
    family = [labels[f] for f in of]
    order = rng.permutation(n)
    names, family, of = [names[i] for i in order], [family[i] for i in order], of[order]
    sizes = (40 * 10 ** rng.uniform(0, 1.4, n)).astype(int)

    features = rng.normal(size=(families, 6))[of] + 0.35 * rng.normal(size=(n, 6))
    near = -((features[:, None] - features[None]) ** 2).sum(-1) / 12
    noise = rng.normal(size=(n, n)) * 0.05
    pmi = near + 0.25 * (of[:, None] == of) + (noise + noise.T) / 2
    np.fill_diagonal(pmi, 0)
    jsd = 1 - 0.4 * (1 - np.exp(near))
    np.fill_diagonal(jsd, 1)

    (workdir / "affinity").mkdir(parents=True)
    for kind, matrix in (("pmi", pmi), ("jsd", jsd)):
        np.savez(
            workdir / "affinity" / f"{kind}.npz",
            affinity=matrix,
            tasks=np.array(names),
            low=matrix - 0.08,
            high=matrix + 0.08,
        )
    np.savez(workdir / "affinity" / "scores.npz", log_likelihood=np.zeros((2, 2)))
    share = np.where(np.eye(n, dtype=bool), 1.0, np.exp(near) - 0.5 + noise)
    np.savez(
        workdir / "affinity" / "transfer.npz",
        tasks=np.array(names),
        share=share,
        low=share - 0.1,
        high=share + 0.1,
        learnt=np.arange(n) > 0,
    )

    budget = int(sizes.sum() // 4)
    mixtures = {}
    for name in MIXTURES:
        entry = {"affinity": None, "method": name, "ratio": None, "energy": None, "gap": None}
        weights = sizes / sizes.sum() if name == "size-proportional" else np.full(n, 1 / n)
        if name.startswith("taskpgm"):
            matrix = pmi if name.endswith("pmi") else jsd
            ratio = 1.6
            shifted, weights = solve(matrix, ratio)
            unary, pairwise = matrix.sum(1) / n, shifted @ weights
            gradient = pairwise - ratio * unary
            entry = {
                "affinity": name[-3:],
                "method": "exact",
                "ratio": ratio,
                "gap": 3e-12,
                "energy": float(weights @ pairwise / 2 - ratio * unary @ weights),
                "explain": {
                    "representativeness": unary.tolist(),
                    "redundancy": pairwise.tolist(),
                    "reduced_cost": np.where(
                        weights > 0, 0, gradient - gradient[weights > 0].mean()
                    ).tolist(),
                    "low": np.maximum(weights - 0.012, 0).tolist(),
                    "high": (weights + 0.014).tolist(),
                    "kept_share": np.where(weights > 0, 0.97, 0.2).tolist(),
                    "energy_unary": float(-ratio * unary @ weights),
                    "energy_pairwise": float(weights @ pairwise / 2),
                },
            }
        entry |= {
            "effective": float(
                np.exp(-(weights * np.log(weights, where=weights > 0, out=np.zeros(n))).sum())
            ),
            "weights": weights.tolist(),
            "counts": np.floor(weights * budget).astype(int).tolist(),
        }
        entry["predicted"] = (0.9 + 0.1 * np.sin(of) - 0.2 * (1 + of) * weights).tolist()
        if name == "taskpgm-jsd":
            entry["selection"] = {"order": [0, 1], "share": [0.4, 0.7], "guarantee": 0.001}
        mixtures[name] = entry
    (workdir / "mixture").mkdir()
    steps = np.linspace(1 / n, 1, 5)[:, None]
    np.savez(
        workdir / "mixture" / "paths.npz",
        pmi_ratios=np.linspace(0, 16, 5),
        pmi_weights=steps * np.eye(n)[0] + (1 - steps) / n,
        pmi_grid=np.linspace(0, 4, 5),
        pmi_effective=np.linspace(n, 1, 5),
        pmi_predicted=np.linspace(1, 2, 5),
    )
    _dump(
        workdir / "mixture" / "weights.json",
        {
            "tasks": names,
            "families": family,
            "sizes": sizes.tolist(),
            "mixtures": mixtures,
            "main": "taskpgm-pmi",
            **mixtures["taskpgm-pmi"],
        },
    )
    _dump(
        workdir / "config.json",
        {"seed": 0, "mixture": {"ratio": 1.6}, "compare": list(MIXTURES)},
    )
    _dump(
        workdir / "tasks.json",
        {
            "key": "0",
            "tasks": [
                {
                    "name": t,
                    "family": f,
                    "train": int(s),
                    "heldout": int(s) // 8,
                    "test": int(s) // 8,
                    "hash": "0" * 8,
                    "notes": ["a held-out split was cut off"] if i == 0 else [],
                }
                for i, (t, f, s) in enumerate(zip(names, family, sizes, strict=True))
            ],
        },
    )

    def report(shift: float) -> dict:
        loss = 0.9 + 0.25 * np.sin(of) + shift * np.clip(1 + 0.8 * rng.normal(size=n), 0.1, 3)
        tasks = {
            t: {
                "loss": float(v),
                "exact_match": float(np.clip(1.1 - v, 0, 1)),
                "examples": 30,
                "tokens": 240,
            }
            for t, v in zip(names, loss, strict=True)
        }
        mean = lambda reports: {  # noqa: E731
            key: float(np.mean([r[key] for r in reports])) for key in ("loss", "exact_match")
        }
        groups = {
            f: mean([tasks[t] for t, g in zip(names, family, strict=True) if g == f])
            for f in dict.fromkeys(family)
        }
        return {
            "tasks": tasks,
            "families": groups,
            "mean": mean(tasks.values()),
            "family_mean": mean(groups.values()),
        }

    runs = {}
    for i, name in enumerate(MIXTURES):
        runs[name] = report(-0.05 if name == winner else -0.02 + 0.01 * i)
        spent = {"steps": 400, "epochs": 1.0, "seconds": 61.5 + i, "examples": budget}
        runs[name] |= {**spent, "tokens": 41 * budget, "seeds": []}
        shifts = spread * np.linspace(-1, 1, seeds) * (1 + i) if seeds > 1 else []
        for shift in shifts:
            losses = {t: r["loss"] + shift for t, r in runs[name]["tasks"].items()}
            means = {
                section: {
                    "loss": runs[name][section]["loss"] + shift,
                    "exact_match": runs[name][section]["exact_match"],
                }
                for section in ("mean", "family_mean")
            }
            runs[name]["seeds"].append({**means, "losses": losses})
        folder = workdir / "runs" / name
        folder.mkdir(parents=True)
        loss = 1 + 2 * np.exp(-np.arange(100) / 15) + 0.08 * rng.normal(size=100) + 0.1 * i
        lines = [
            json.dumps({"step": 4 * k, "loss": float(v), "tokens": 100}) for k, v in enumerate(loss)
        ]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 40')
    part = {"trained": 5000, "scored": 700, "flops": 3e9, "seconds": 12.5}
    nothing = {"trained": 0, "scored": 0, "flops": 0.0, "seconds": 0.25}
    ours = [name.startswith("taskpgm") for name in MIXTURES]
    _dump(
        workdir / "mixture" / "choosing.json",
        {
            "rows": {
                name: {"parts": ["adapters"] * own, "total": part if own else nothing}
                for name, own in zip(MIXTURES, ours, strict=True)
            },
            "parts": {"adapters": part},
        },
    )
    results = {
        "base": report(1.4),
        "runs": runs,
        "samples": [
            {
                "task": names[0],
                "family": family[0],
                "prompt": "upper: <b>&amp;</b>\nanswer:",
                "response": "YES",
                "predictions": {name: "YES" if name == winner else "no" for name in MIXTURES},
            }
        ],
    }
    compare_again(results, dict(zip(names, family, strict=True)))
    _dump(workdir / "evaluation" / "results.json", results)
    return workdir


def _dump(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture(scope="session")
def make_workdir() -> Callable[..., Path]:
    return make
