"""Every key of a config, once: its default, what it may be, and its meaning.

Sections belong to stages (see `flow.py`): changing a key concerns that stage and those after it.
`python -m taskpgm.stages.defaults` prints the table of keys that is docs/config.md.
"""

from typing import Any

from ml_collections import ConfigDict

from taskpgm.stages.ratio import AUTO, is_ratio
from taskpgm.stages.schema import (
    Key,
    Section,
    are_names,
    axis,
    choice,
    file,
    integer,
    keys_of,
    number,
    share,
    sweep_section,
    switch,
    text,
    words,
)
from taskpgm.stages.schema_parts import lora, optimizer

DTYPES = ("float32", "bfloat16", "float16")
EXPORTS = ("jsonl", "trl", "axolotl", "llama-factory", "open-instruct", "nemo")
ATTENTION = ("auto", "reference", "splash")  # what keeps the examples of a row apart
STEPS, ROWS = 10**9, 2**20  # the most steps and rows that anybody could mean


SCHEMA: Section = {
    "seed": integer(0, 0, "of everything drawn", 2**31 - 1),
    # --- What is mixed
    "tasks": {
        "source": text(
            "stdlib",
            "`stdlib` (the embedded suite), a folder of JSONL or Parquet files, a folder saved by "
            "`datasets`, a YAML manifest of many, or the name of a data set on the hub",
            empty=False,
        ),
        "targets": text(
            "",
            "tasks that are judged and not mixed, as `source`; they need no training split",
        ),
        "heldout_fraction": share("cut off, seeded, where a task brings no held-out split"),
        "test_fraction": share("likewise, where it brings no test split"),
        "max_heldout": integer(0, 0, "held-out examples used per task to choose a mixture; 0: all"),
        "max_test": integer(0, 0, "test examples used per task to judge a model; 0: all"),
        "chat_template": file("a Jinja file, for chat rows where the tokenizer brings none"),
        "length": integer(
            2048, 8, "tokens in a packed row; longer prompts lose their beginning", 2**20
        ),
    },
    # --- The base model
    "base": {
        "path": text(
            "",
            "a Hugging Face folder, or a model of the hub as `org/name` or `org/name@revision`; "
            "empty: pretrain the small embedded one",
        ),
        "dtype": choice(
            "float32", DTYPES, "of activations; reductions are float32 whatever this is"
        ),
        "param_dtype": choice("float32", DTYPES, "of weights"),
        "remat": choice("none", ("none", "dots", "full"), "what the backward pass recomputes"),
        "attention": choice("auto", ATTENTION, "how attention is computed"),
    },
    "embedded": {
        "vocab_size": integer(1024, 258, "entries of its tokenizer", 2**20),
        "hidden_size": integer(128, 2, "width of its layers", 2**17),
        "intermediate_size": integer(344, 1, "width inside its MLP", 2**20),
        "num_layers": integer(4, 1, "layers", 1024),
        "num_heads": integer(4, 1, "attention heads; hidden_size is a multiple of twice this"),
        "num_kv_heads": integer(2, 1, "key and value heads; num_heads is a multiple of this"),
        "task_share": number(
            0.25, "share of its rows that are a thin sample of training tasks", most=1.0
        ),
        "examples_per_task": integer(16, 1, "that sample, never a held-out row"),
        "steps": integer(400, 1, "of pretraining", STEPS),
        "batch_size": integer(16, 1, "rows per step", ROWS),
        "checkpoint_every": integer(200, 1, "steps between two checkpoints"),
        "optimizer": optimizer(lr=3e-3, weight_decay=0.1, warmup=0.05),
    },
    # --- One model per task
    "proxy": {
        "path": text(
            "", "single-task models are fine-tuned from this one, named likewise; empty: the base"
        ),
    },
    "adapters": {
        "source": text("", "a folder of PEFT folders, SOURCE/TASK, taken over instead of training"),
        "peft": switch(False, "write each adapter as a PEFT folder too, adapters/TASK/peft"),
        "mode": choice("lora", ("lora", "full"), "adapters, or a whole copy per small model"),
        "lora": lora(),
        "optimizer": optimizer(lr=2e-4),
        "epochs": number(1.0, "passes over a task's training split", above=True, most=1e6),
        "min_steps": integer(1, 1, "at least so many steps for each task", STEPS),
        "max_steps": integer(0, 0, "at most so many; 0: as many as `epochs` asks for", STEPS),
        "batch_size": integer(8, 1, "rows per task and step", ROWS),
        "group": integer(0, 0, "tasks trained side by side; 0: as many as memory takes"),
        "memory": number(
            0.0, "GiB a device has for a group; 0: what the device reports", most=2.0**20
        ),
        "checkpoint_every": integer(200, 1, "steps between two checkpoints"),
    },
    "embeddings": {
        "examples": integer(256, 0, "prompts of a task that are embedded; 0: all it trains on"),
        "batch_size": integer(8, 1, "rows at a time", ROWS),
    },
    # --- How tasks relate
    "affinity": {
        "matrix": text(
            "",
            "a .npy, .npz, .csv or .tsv file, or a folder of lm-evaluation-harness's results: then "
            "no single-task model is needed",
        ),
        "kind": choice(
            "pmi",
            ("pmi", "jsd", "loss", "likelihood"),
            "with `matrix`: an affinity; losses [n (+ base), n]; log-likelihoods [n, m]",
        ),
        "sizes": text("", "with `matrix`: a .json of {task: training size}"),
        "normalize": choice(
            "token", ("token", "sequence"), "likelihood per token, or of whole responses"
        ),
        "contexts": choice("pool", ("pool", "pair"), "whose held-out sets a JSD is taken over"),
        "vocab_top_k": integer(0, 0, "k: JSD of the k likeliest entries and the rest; 0: of all"),
        "kernel": choice(
            "xla", ("xla", "pallas"), "of all pairs' JSD; pallas: one TPU, where it never ran yet"
        ),
        "batch_size": integer(8, 1, "rows at a time", ROWS),
        "memory": number(
            1.0, "GiB that distributions may take at any time", above=True, most=2.0**20
        ),
        "bootstrap": integer(200, 0, "resamples for the intervals; 0: none", 100_000),
    },
    # --- What to mix
    "mixture": {
        "ratio": Key(
            AUTO,
            "a number >= 0, 'auto', or one by affinity as in 'pmi=0.5,jsd=auto'",
            is_ratio,
            "unary / pairwise: 0 pure diversity, 1 uniform, > 1 representative; auto: least "
            "predicted loss",
        ),
        "importance": text(
            "tasks",
            "what matters: 'tasks', 'families' or 'targets' alike, or a JSON file of {task or "
            "family: weight}",
            empty=False,
        ),
        "bounds": text(
            "",
            "smallest and largest weights, as in 'boolq=0:0.1,family:nli=0.05:0.3', or a JSON file "
            "of {task or family:NAME: [low, high]}; ours obey them, baselines do not",
        ),
        "prior": text(
            "importance",
            "what weights are pulled to: 'importance' (above), 'uniform', 'families', 'size', or a "
            "JSON file of {task: weight}",
            empty=False,
        ),
        "kl": number(0.0, "strength of that pull, a KL divergence in units of the energy; 0: no"),
        "psd": choice(
            "simplex",
            ("simplex", "shift", "clip"),
            "how it is made convex: the least shift, the paper's, or no eigenvalue below it",
        ),
        "floor": number(
            1e-3, "its least eigenvalue, as a share of the largest", above=True, most=1.0
        ),
        "method": choice("exact", ("exact", "closed_form"), "of solving; closed_form: the paper's"),
        "budget": integer(25_000, 1, "examples in the mixture"),
        "max_epochs": number(1.0, "no task is repeated more often than this", above=True, most=1e6),
    },
    "compare": Key(
        ("uniform", "size-proportional", "taskpgm-pmi", "taskpgm-jsd"),
        "a tuple of different rows of the table in `taskpgm/stages/rows.py`, at least one",
        lambda x: len(x) > 0 and are_names(x),
        "the mixtures compared, as in `taskpgm-pmi:r=4`",
    ),
    "export": words(
        (),
        "the mixtures' examples as files for other trainers; mixture/NAME.jsonl",
        EXPORTS,
        least=0,
    ),
    # --- The models trained on the mixtures
    "train": {
        "mode": choice("full", ("full", "lora"), "what is trained: all weights, or adapters"),
        "lora": lora(),
        "optimizer": optimizer(lr=2e-5),
        "steps": integer(
            0, 0, "of every run; 0: `epochs` of the budget spread evenly over tasks", STEPS
        ),
        "epochs": number(1.0, "passes over the budget", above=True, most=1e6),
        "seeds": integer(
            1, 1, "models per mixture: their spread tells a difference from chance", 1000
        ),
        "batch_size": integer(16, 1, "rows per step and run, over all devices", ROWS),
        "group": integer(
            1,
            0,
            "runs of one shape that train side by side in one program, at most; 0: as many as "
            "memory takes; 1: one after the other",
            1000,
        ),
        "accumulate": integer(1, 1, "micro-batches a step; batch_size is a multiple of it"),
        "checkpoint_every": integer(500, 1, "steps between two checkpoints"),
        "keep": integer(
            2, 1, "checkpoints kept: were the newest damaged, a run goes on from the other"
        ),
        "log": choice(
            "",
            ("", "tensorboard", "wandb"),
            "a board beside metrics.jsonl; an extra",
        ),
    },
    # --- What it is worth
    "evaluation": {
        "batch_size": integer(16, 1, "rows, and answers, at a time", ROWS),
        "exact_match_examples": integer(0, 0, "per task, answers generated; 0: all test rows"),
        "max_new_tokens": integer(32, 1, "tokens of an answer; one that is longer does not match"),
        "harness": words((), "lm-evaluation-harness tasks, as in ('mmlu', 'bbh')"),
        "harness_path": text("", "a folder of task YAML files of your own, or one file"),
        "harness_num_fewshot": integer(
            -1, -1, "examples in the context; -1: 5 for mmlu, else what the task says", 1000
        ),
        "harness_limit": integer(0, 0, "at most so many examples of each; 0: all"),
        "harness_batch_size": integer(8, 1, "rows, or prompts, at a time", ROWS),
        "harness_chat_template": switch(False, "prompts as chats, by the tokenizer's template"),
    },
    # --- The machine
    "mesh": {
        "task": axis(1, "devices over which single-task models are spread"),
        "data": axis(-1, "devices over which rows are spread"),
        "fsdp": axis(1, "devices over which rows and weights are spread"),
        "tensor": axis(1, "devices over which matrices are spread"),
    },
    "ray": {
        "workers": integer(2, 1, "processes that share the workdir, with --ray", 10_000),
        "cpus": number(1.0, "CPUs that Ray gives each of them", most=10_000.0),
        "gpus": number(0.0, "and GPUs", most=10_000.0),
        "retries": integer(2, 0, "times that one which fails is started again"),
    },
    "log_every": integer(20, 1, "steps between two lines of metrics.jsonl"),
}

# How a model is trained, and not what it becomes; of these only the seeds are swept.
HOW = ("train.seeds", "train.checkpoint_every", "train.keep", "train.log", "train.group")
SCHEMA = {**SCHEMA, "sweep": sweep_section(SCHEMA, ("mixture", "train"), HOW[1:])}


def default_config() -> ConfigDict:
    """The whole schema. Keys can be set, by a recipe or as `--config.a.b=value`, but not added."""
    return ConfigDict(_values(SCHEMA))


def _values(section: Section) -> dict[str, Any]:
    return {k: v.default if isinstance(v, Key) else _values(v) for k, v in section.items()}


def keys() -> dict[str, Key]:
    """{"seed": Key, "tasks.source": Key, ...}, in order."""
    return keys_of(SCHEMA)


# --- The table -----------------------------------------------------------------------------------
def table() -> str:
    """docs/config.md."""
    lines = [
        "# Every key of a config",
        "",
        "Made from `taskpgm/stages/defaults.py` by `python -m taskpgm.stages.defaults >",
        "docs/config.md`. Set a key in a recipe, or as `--config.KEY=VALUE`.",
        "",
        "| key | default | allowed | meaning |",
        "|---|---|---|---|",
    ]
    for name, key in keys().items():
        default = '`""`' if key.default == "" else f"`{key.default}`"
        lines.append(f"| `{name}` | {default} | {key.allowed} | {key.meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
