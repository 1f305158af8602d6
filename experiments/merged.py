"""What merged adapters say of a mixture: the held-out loss of the base plus sum_i p_i A_i B_i.

    python experiments/merged.py --workdir=runs/quickstart --swarm=runs/swarm

Takes the adapters from a finished quickstart, and the mixtures from a swarm that `train_swarm.py`
has made of it. Writes SWARM/merged.npz: for every scale of the sum an array [R, n], a row for every
run, nats per token; `predict.py` then ranks it beside the other predictors. Shares sum to 1, so
that the sum itself is a small step; a larger scale goes further along it. One forward pass over the
held-out rows a mixture: no training, but unlike the law it needs the models, not just their scores.
Source: Wortsman et al. (2022), "Model soups"; Huang et al. (2023), "LoraHub".
"""

import argparse
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from taskpgm import evaluation, models
from taskpgm.stages.adapter_files import load_adapters
from taskpgm.stages.context import Context
from taskpgm.stages.decoders import with_lora

SCALES = (1.0, 4.0)
RECIPE = Path(__file__).parents[1] / "configs" / "quickstart.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--workdir", type=Path, required=True, help="of a finished quickstart")
    parser.add_argument("--swarm", type=Path, required=True, help="folder of the swarm")
    given = parser.parse_args()
    context = Context(runpy.run_path(str(RECIPE))["get_config"](), given.workdir, sys.argv)
    runs = [json.loads(line) for line in (given.swarm / "runs.jsonl").read_text().splitlines()]
    merger, known, found = Merger(context), {}, []
    for number, run in enumerate(runs, 1):
        counts = tuple(run["counts"])
        if counts not in known:
            p = np.array(counts) / sum(counts)
            known[counts] = np.array([merger.losses(scale * p) for scale in SCALES])
            told = ", ".join(f"{loss:.4f}" for loss in known[counts].mean(1))
            print(f"{number}/{len(runs)} {run['name']}: {told}", flush=True)
        found.append(known[counts])
    each = {f"x{scale:g}": loss for scale, loss in zip(SCALES, np.stack(found, 1), strict=True)}
    np.savez(given.swarm / "merged.npz", allow_pickle=False, **each)


class Merger:
    """The base and what every single-task model adds to its kernels, in memory."""

    def __init__(self, context: Context):
        self.context = context
        self.config, self.params = context.load_model(context.base)
        adapted = with_lora(self.config, context.config.adapters)
        load = load_adapters(context, adapted, context.names)

        def change(i: int) -> Any:
            """What the adapter of task i adds to every parameter."""
            lora = jax.tree.map(lambda x: x[0], load([i]))
            merged = models.merge_lora(adapted, self.params, lora)
            return jax.tree.map(lambda new, old: new - old, merged, self.params)

        self.changes = [change(i) for i in range(len(context.names))]
        self.heldout = [context.rows(context.base, t.heldout, t.name) for t in context.tasks]

    def losses(self, p: np.ndarray) -> np.ndarray:
        """Held-out loss of every task under the merged model, [n], nats per token."""
        context = self.context
        merged = jax.tree.map(
            lambda base, *parts: base + sum(w * x for w, x in zip(p, parts, strict=True)),
            self.params,
            *self.changes,
        )
        found = evaluation.task_losses(
            self.config,
            merged,
            context.tasks,
            self.heldout,
            batch_size=context.config.evaluation.batch_size,
        )
        return np.array([found[name]["loss"] for name in context.names])


if __name__ == "__main__":
    main()
