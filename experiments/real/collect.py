"""A workdir's judged models as a swarm, which `predict.py` reads: what predicts their losses?

    python experiments/real/collect.py runs/real/run experiments/results/real_swarm_300 --budget 300

Writes OUT/runs.jsonl, a line for every judged model of the last launch with that budget (name,
seed, drawn shares and counts, packed rows, test loss of every task), and OUT/scores.npz, what
single-task models said of the held-out examples. `--rows PREFIX` takes only rows of `compare` that
begin so.
"""

import argparse
import json
from pathlib import Path

import numpy as np


def runs(workdir: Path, budget: int, prefix: str) -> list[dict]:
    """What `swarm.load` reads of every judged model whose mixture is in weights.json.

    Raises:
      SystemExit: the workdir has no mixture, or no judged model of that budget.
    """
    file = workdir / "mixture" / "weights.json"
    if not file.is_file():
        raise SystemExit(f"error: {file} is not there: name a workdir whose runs have been judged")
    weights = json.loads(file.read_text())
    if weights["targets"]:
        raise SystemExit(f"error: {workdir} has targets, which a swarm cannot have")
    found = []
    for mark in sorted(workdir.glob("runs/*/done.json")):
        run = json.loads(mark.read_text())
        measures = workdir / "evaluation" / mark.parent.name / "measures.json"
        mixture = weights["mixtures"].get(run["label"])
        chosen = run["examples"] == budget and run["row"].startswith(prefix)
        if not (chosen and mixture and measures.is_file()):
            continue
        judged = json.loads(measures.read_text())["tasks"]
        share = np.array(mixture["counts"]) / sum(mixture["counts"])
        line = {"name": run["label"].rpartition("/")[2], "seed": run["seed"]}
        line |= {"p": share.round(6).tolist(), "counts": mixture["counts"], "rows": run["rows"]}
        line["loss"] = [round(judged[task]["loss"], 5) for task in weights["tasks"]]
        found.append(line)
    if not found:
        raise SystemExit(
            f"error: {workdir}: no judged model of {budget} examples, row '{prefix}...'"
        )
    return found


def scores(workdir: Path) -> dict[str, np.ndarray]:
    """The arrays of scores.npz, as experiments/swarm.py tells of them."""
    tasks = json.loads((workdir / "tasks.json").read_text())["tasks"]
    sizes = json.loads((workdir / "mixture" / "weights.json").read_text())["sizes"]
    said = np.load(workdir / "affinity" / "likelihoods.npz")
    learnt = np.load(workdir / "affinity" / "transfer.npz")
    return {
        **{name: said[name] for name in ("log_likelihood", "tokens", "task")},
        "names": said["tasks"],
        "families": np.array([task["family"] for task in tasks]),
        "sizes": np.array(sizes),
        "base_loss": learnt["base_loss"],
        "seen": learnt["seen"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("workdir", type=Path, help="a workdir of study.py, or any other")
    parser.add_argument("out", type=Path, help="folder of the swarm")
    parser.add_argument("--budget", type=int, required=True, help="examples of a run")
    parser.add_argument("--rows", default="", metavar="PREFIX")
    given = parser.parse_args()
    found = runs(given.workdir, given.budget, given.rows)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    np.savez_compressed(given.out / "scores.npz", **scores(given.workdir))
    print(f"{len(found)} runs in {given.out}")


if __name__ == "__main__":
    main()
