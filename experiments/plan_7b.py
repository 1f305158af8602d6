"""What the 7B recipes would cost on other machines: `--dry_run --device=NAME` on stand-ins.

    python -m experiments.plan_7b

No weights and no data are at hand: the models are a config.json of the published shapes and a small
tokenizer; the tasks are stand-ins with the counts of configs/flan_mix.yaml, 316 tasks of 2000 rows
(200 of them to test, 64 held out), about 190 tokens of prompt and 60 of response each.
Writes results/plan_7b.md. Planned figures: nothing of it has been run.
"""

import argparse
import json
import os
import random
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a plan needs no data of benchmarks

from taskpgm.stages.checks import problems_of_plan  # noqa: E402
from taskpgm.stages.context import Context  # noqa: E402
from taskpgm.stages.devices import machine  # noqa: E402
from taskpgm.stages.estimate import Cost, Estimate, size  # noqa: E402
from taskpgm.stages.flow import STAGES  # noqa: E402
from taskpgm.tasks import Example, Task, corpus  # noqa: E402

TASKS, TRAIN, HELDOUT, TEST = 316, 1736, 64, 200
COMMON = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
}
MODELS = {
    "llama2_mix": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32_000,
        "intermediate_size": 11_008,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
    "mistral_mix": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "vocab_size": 32_000,
        "intermediate_size": 14_336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 32_768,
        "sliding_window": 4096,
    },
    "qwen2_mix": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_attention_heads": 28,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
    },
}
MACHINES = {"h100x1": "1 x H100", "h100x8": "8 x H100", "v5e-64": "64 x v5e"}
SMALLER = {"v5e-64": {"affinity.memory": 8.0}}  # what a device of 16 GB needs
COSTLY = ("adapters", "affinity", "runs", "evaluation")


def write_model(folder: Path, settings: dict, tokenizer) -> None:
    """config.json and a tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(COMMON | settings))
    tokenizer.save_pretrained(folder)


def stand_ins() -> list[Task]:
    """Tasks of one size, all of the same words: a plan counts them and learns nothing."""
    draw, words = random.Random(0), "the of and to in is that for on with as by at from it".split()
    text = lambda count: " ".join(draw.choices(words, k=count))  # noqa: E731
    pool = [Example(text(188) + "\n", text(60)) for _ in range(64)]
    rows = [tuple(pool[i % 64] for i in range(count)) for count in (TRAIN, HELDOUT, TEST)]
    return [Task(f"task{k:03d}", "stand-in", *rows) for k in range(TASKS)]


class OnePool(Estimate):
    """Of tasks that are all alike, under one tokenizer: what is counted of one is true of all."""

    known: ClassVar[dict[int, Any]] = {}

    def packed(self, source, examples):
        if len(examples) not in self.known:
            self.known[len(examples)] = super().packed(source, examples)
        return self.known[len(examples)]

    def _encode(self, source, examples):
        if -len(examples) not in self.known:
            self.known[-len(examples)] = super()._encode(source, examples)
        return self.known[-len(examples)]

    @property
    def tokens_per_example(self):
        return self.packed(self.context.base, self.context.tasks[0].train).tokens / TRAIN


def estimate_of(config: Any, tasks: list[Task], model: Path, name: str) -> Estimate:
    """An estimate of a recipe with that base, on stand-in tasks and on a machine."""
    config.base.path, config.tasks.chat_template = str(model), ""
    config.update_from_flattened_dict(SMALLER.get(name, {}))
    context = Context(config, model / "run", [], planning=True)
    context.__dict__ |= {"judged": tasks, "tasks_key": "stand-ins", "answers_cut_off": []}
    return OnePool(context, machine(name))


def costs_of(stage: str, estimate: Estimate) -> tuple[list[Cost], float]:
    """The costs of a stage's artefacts, and their hours."""
    costs = [each.cost(estimate) for each in STAGES[stage].artefacts(estimate.context)]
    return costs, sum(cost.seconds(estimate.machine) or 0.0 for cost in costs) / 3600


def plan(recipe: str, tasks: list[Task], model: Path, name: str) -> tuple[dict, list[str]]:
    """{stage: (hours, bytes on a device)} on a machine, and what does not fit there."""
    config = import_module(f"configs.{recipe}").get_config()
    estimate = estimate_of(config, tasks, model, name)
    figures, problems = {}, problems_of_plan(estimate.context, estimate).said
    for stage in COSTLY:
        costs, hours = costs_of(stage, estimate)
        figures[stage] = hours, max(cost.memory or 0.0 for cost in costs)
        problems += [f"{stage}: {cost.problem}" for cost in costs if cost.problem]
    return figures, list(dict.fromkeys(problems))


def main() -> None:
    about = __doc__ or ""
    argparse.ArgumentParser(description=about.splitlines()[0]).parse_args()
    out = [
        "# Planned cost of the 7B recipes",
        "",
        "`python -m experiments.plan_7b`. **Planned figures: nothing of this has been run.** No",
        f"weights and no data are at hand: shapes are those of config.json, and {TASKS} stand-in",
        f"tasks of {TRAIN + HELDOUT + TEST} rows, about 250 tokens each, have the counts of",
        "configs/flan_mix.yaml. Hours are at 40% of the peaks of data sheets (matrix products in",
        "bfloat16, divergences in float32) and do not count waiting for data or for other devices.",
        "On v5e `affinity.memory=8`, everywhere else the recipes as they stand.",
    ]
    tasks = stand_ins()
    with tempfile.TemporaryDirectory() as folder:
        texts = [x.prompt + x.response for x in tasks[0].heldout]
        tokenizer = corpus.train_tokenizer(texts, 1000)
        for recipe, settings in MODELS.items():
            write_model(Path(folder) / recipe, settings, tokenizer)
            found = {name: plan(recipe, tasks, Path(folder) / recipe, name) for name in MACHINES}
            out += ["", f"## {recipe}", "", f"| stage | {' | '.join(MACHINES.values())} |"]
            out.append("|---" * (1 + len(MACHINES)) + "|")
            for stage in COSTLY:
                cells = [found[name][0][stage] for name in MACHINES]
                told = [f"{hours:,.2f} h, {size(memory)}" for hours, memory in cells]
                out.append(f"| {stage} | {' | '.join(told)} |")
            totals = [sum(hours for hours, _ in found[name][0].values()) for name in MACHINES]
            out.append(f"| all | {' | '.join(f'{total:,.1f} h' for total in totals)} |")
            for name, title in MACHINES.items():
                said = [x for x in found[name][1] if "its data cannot be had" not in x]
                said = [x.split(": no weights")[0] for x in said if "no weights" not in x]
                out += ["", f"On {title}:", ""] + [f"- {text}" for text in said] if said else []
            print("\n".join(out[-20:]), flush=True)
    path = Path(__file__).parent / "results" / "plan_7b.md"
    path.write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
