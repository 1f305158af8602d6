"""What the paper's tables would cost on other machines: `--dry_run` on the stand-ins of plan_7b.

    python experiments/plan_paper.py

Each table of configs/paper.py for each model family. Single-task models and affinities are those of
GPT-2 and shared by all tables of a family; a table then costs the models that it trains and
measures, as if no other table had trained any of them. Writes results/plan_paper.md. Planned
figures: nothing of it has been run.
"""

import argparse
import tempfile
from pathlib import Path

from paper import tables
from plan_7b import MACHINES, MODELS, TRAIN, costs_of, estimate_of, stand_ins, write_model
from taskpgm.stages.flow import STAGES
from taskpgm.tasks import Task, corpus

GPT2 = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 50_257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}
# LLaMA-7B is Llama-2-7B in all that a plan counts, but for its positions.
SHAPES = {
    "llama2": MODELS["llama2_mix"],
    "mistral": MODELS["mistral_mix"],
    "llama": {**MODELS["llama2_mix"], "max_position_embeddings": 2048},
    "qwen2": MODELS["qwen2_mix"],
}
PARTS = {"before": ("adapters", "affinity"), "after": ("embeddings", "runs", "evaluation")}


def hours(table: str, folder: Path, family: str, tasks: list[Task], name: str) -> dict:
    """{"before": hours up to the affinity, "after": hours from the mixtures on, "models": how many
    are trained} on a machine."""
    config = tables().get_config(f"{table}-{family}")
    config.proxy.path = str(folder / "gpt2") if config.proxy.path else ""
    estimate = estimate_of(config, tasks, folder / family, name)
    found: dict = {"models": sum(1 for _ in STAGES["runs"].artefacts(estimate.context))}
    for part, stages in PARTS.items():
        found[part] = sum(costs_of(stage, estimate)[1] for stage in stages)
    return found


def main() -> None:
    about = __doc__ or ""
    argparse.ArgumentParser(description=about.splitlines()[0]).parse_args()
    out = [
        "# Planned cost of the paper's tables",
        "",
        "`python experiments/plan_paper.py`. **Planned figures: nothing of this has been run.** No",
        f"weights and no data are at hand: 316 stand-in tasks of {TRAIN} training rows, about 250",
        "tokens each; hours at 40% of the peaks of data sheets. What comes before the mixtures is",
        "made once for all tables of a family. MMLU and BIG-Bench Hard are counted by their sizes.",
        "What does not fit a machine is told by `experiments/paper.py --table=NAME --dry_run`.",
        "",
        f"| table | models | {' | '.join(f'{title}, h' for title in MACHINES.values())} |",
        "|---|---" + "|---" * len(MACHINES) + "|",
    ]
    tasks = stand_ins()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        tokenizer = corpus.train_tokenizer([x.prompt + x.response for x in tasks[0].heldout], 1000)
        for family, shape in {**SHAPES, "gpt2": GPT2}.items():
            write_model(folder / family, shape, tokenizer)
        for family in tables().FAMILIES:
            for kind, told in (("budgets", "GPT-2's"), ("own", "its own")):
                each = [hours(kind, folder, family, tasks, name)["before"] for name in MACHINES]
                cells = " | ".join(f"{value:,.1f}" for value in each)
                out.append(f"| {family}: {told} adapters and affinities | | {cells} |")
            for table in ("budgets", "ratio", "baselines", "selection"):
                found = [hours(table, folder, family, tasks, name) for name in MACHINES]
                cells = " | ".join(f"{each['after']:,.1f}" for each in found)
                out.append(f"| {table}-{family} | {found[0]['models']} | {cells} |")
            print("\n".join(out[-6:]), flush=True)
    path = Path(__file__).parent / "results" / "plan_paper.md"
    path.write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
