"""How much JSD does `vocab_top_k` lose? On the adapters of a finished quickstart.

    python experiments/vocab_top_k.py --workdir=runs/quickstart        # a minute on 2 CPU cores

Every JSD of k entries and one remainder is a lower bound; the table says how far below it is, on
every fourth task's held-out examples. Writes experiments/results/vocab_top_k.json.
"""

import argparse
import json
import runpy
import sys
from pathlib import Path

import numpy as np

from taskpgm.affinity.layout import layout
from taskpgm.affinity.pairwise import ScoredModels, bins, score_pairs
from taskpgm.models.scoring import decoder_forward
from taskpgm.stages.adapter_files import load_adapters
from taskpgm.stages.context import Context
from taskpgm.stages.decoders import with_lora


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True)
    recipe = Path(__file__).parents[1] / "configs" / "quickstart.py"
    settings = runpy.run_path(str(recipe))["get_config"]()
    context = Context(settings, parser.parse_args().workdir, sys.argv)
    config, params = context.load_model(context.proxy)
    config = with_lora(config, settings.adapters)
    models_of = load_adapters(context, config, context.names)
    rows = [context.rows(context.proxy, t.heldout, t.name) for t in context.tasks]
    n, length = len(rows), rows[0].tokens.shape[1]
    cut = layout(n, config, length=length, batch_size=8, memory=2**29)

    models = ScoredModels(decoder_forward(config), params, models_of)

    def divergences(top_k: int | None) -> np.ndarray:
        means = []
        for part in rows[::4]:
            count = int(part.example.max()) + 1
            _, got = score_pairs(models, range(n), [], part, count, cut, top_k=top_k)
            means.append(np.average(got, axis=0, weights=bins(count, cut.bins).count))
        return np.mean(means, 0)[np.triu_indices(n, 1)]

    whole = divergences(None)
    out = {"models": n, "entries": config.vocab_size, "mean": whole.mean(), "k": {}}
    print(f"{n} models, {config.vocab_size} entries: mean JSD {whole.mean():.4f} nats")
    for k in (4, 16, 64, 256):
        lost = whole - divergences(k)
        out["k"][k] = {
            "mean lost": lost.mean(),
            "largest lost": lost.max(),
            "share lost": lost.mean() / whole.mean(),
        }
        print(
            f"k = {k:3}: lost {lost.mean():.4f} on average ({lost.mean() / whole.mean():.1%}), "
            f"{lost.max():.4f} at most"
        )
    path = Path(__file__).parent / "results" / "vocab_top_k.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
