"""What the 7B recipes would cost on other machines: `--dry_run --device=NAME` on stand-ins.

    python -m experiments.plan_7b

The models are config.json, a small tokenizer and empty weights of the right shapes (sparse files);
there are 316 tasks of 120 rows, about 190 tokens of prompt and 60 of response each.
Writes results/plan_7b.md. Planned figures: nothing of it has been run.
"""

import argparse
import contextlib
import io
import json
import math
import os
import random
import re
import tempfile
from importlib import import_module
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a plan needs no data of benchmarks

from taskpgm import stages  # noqa: E402
from taskpgm.models import DecoderConfig  # noqa: E402
from taskpgm.models.hf_names import tensor_names  # noqa: E402
from taskpgm.tasks import corpus  # noqa: E402

TASKS, ROWS = 316, 120
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
FIGURE = re.compile(r"[\d.]+(e[+-]\d+| h| [KMGT]?i?B)$")
MACHINES = ("h100x1", "h100x8", "v5e-64")


def write_model(folder: Path, settings: dict, tokenizer) -> None:
    """A model folder whose weights are a sparse file: all zeros, which take no room."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(COMMON | settings))
    tokenizer.save_pretrained(folder)
    config = DecoderConfig.from_hf(folder)
    header, offset = {}, 0
    for _, _, source, shape in tensor_names(config):
        size = 2 * math.prod(shape)
        ends = [offset, offset + size]
        header[source.name] = {"dtype": "BF16", "shape": shape, "data_offsets": ends}
        offset += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def write_tasks(folder: Path) -> list[str]:
    """316 files of words; returns some text for the tokenizer."""
    draw, words = random.Random(0), "the of and to in is that for on with as by at from it".split()
    folder.mkdir(parents=True)
    text = []
    for k in range(TASKS):
        rows = []
        for i in range(ROWS):
            prompt = f"{k} {i} " + " ".join(draw.choices(words, k=187))
            rows.append({"prompt": prompt, "response": " ".join(draw.choices(words, k=59))})
        text.append(rows[0]["prompt"])
        lines = "\n".join(map(json.dumps, rows)) + "\n"
        (folder / f"task{k:03d}.jsonl").write_text(lines)
    return text


def plan(recipe: str, tasks: Path, model: Path, machine: str) -> list[str]:
    """The lines that `--dry_run` prints."""
    config = import_module(f"configs.{recipe}").get_config()
    config.tasks.source, config.base.path = str(tasks), str(model)
    config.tasks.chat_template = ""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), tempfile.TemporaryDirectory() as folder:
        stages.run(config, f"{folder}/run", dry_run=True, device=machine)
    return said.getvalue().splitlines()


def main() -> None:
    about = __doc__ or ""
    argparse.ArgumentParser(description=about.splitlines()[0]).parse_args()
    out = [
        "# Planned cost of the 7B recipes",
        "",
        f"`python -m experiments.plan_7b`. Planned figures, not measured: {TASKS} tasks of {ROWS}",
        "rows, about 250 tokens each; hours at 40% of the peak in bfloat16.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokenizer = corpus.train_tokenizer(write_tasks(root / "tasks"), 1000)
        for recipe, settings in MODELS.items():
            write_model(root / recipe, settings, tokenizer)
            for machine in MACHINES:
                lines = plan(recipe, root / "tasks", root / recipe, machine)
                out += ["", f"## {recipe} on {machine}", ""]
                out += ["| stage | FLOPs | time | disk | memory/device |", "|---|---|---|---|---|"]
                for line in lines:
                    cells = re.split(r"  +", line)
                    if cells[0] in ("adapters", "affinity", "runs", "evaluation"):
                        stage, _, *figures = cells[:6]
                        figures = [x for x in figures if FIGURE.match(x)]
                        out.append("| " + " | ".join([stage, *figures, "", "", ""][:5]) + " |")
                    elif line.startswith(("to do", "does not fit")):
                        out.append(f"\n{line.split('; ')[0] if line[0] == 't' else line}")
                print("\n".join(out[-9:]), flush=True)
    path = Path(__file__).parent / "results" / "plan_7b.md"
    path.write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
