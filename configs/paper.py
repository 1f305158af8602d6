"""The tables of the paper (arXiv 2507.12612) as sweeps, one of TABLES for one of FAMILIES.

    python launch.py --config=configs/paper.py:budgets-llama2 --workdir=runs/paper/llama2

All tables of a family share a workdir: single-task models and affinities are made once, and each
table adds the models that no other has trained. `experiments/paper.py` lists them and runs them.
Hardware and cost: as llama2_mix.py for each trained model; --dry_run prints it, and planned figures
are in experiments/results/plan_paper.md. Not run by us.

What the paper states: the four models; MMLU and BIG-Bench Hard (first two versions, Llama-2-7B and
Mistral-7B), BIG-Bench Hard (later versions, LLaMA-7B and Qwen2-7B); 25,000, 50,000 and 100,000
examples; PMI and JSD; uniform and size-proportional mixtures; an ablation of the two terms; a
discrete variant. From the authors' code: GPT-2 as single-task models (gpt2_proxy.py), beta = 10 and
lambda = 20, which is r = 158 for 316 tasks, mixtures drawn from the union, belief propagation
(which comes to `softmax`), clusters, the graph Laplacian; 2e-5, weight decay 0.1, one epoch.
What was not stated where we could read it, and is our choice: which ratios the ablation tries, and
on which model; how many tasks the discrete variant keeps; the ratio for JSD (here as for PMI);
which rows stand in which table; seeds (here one: set train.seeds); few-shot examples of the
benchmarks (here those of lm-evaluation-harness, 5 for MMLU). Rows `taskpgm-...` are not the
paper's: they are the exact minimisers, at the ratio of the recipe.
"""

from configs import gpt2_proxy, llama2_mix, llama_mix, mistral_mix, qwen2_mix

FAMILIES = {
    "llama2": (llama2_mix, ("mmlu", "bbh")),
    "mistral": (mistral_mix, ("mmlu", "bbh")),
    "llama": (llama_mix, ("bbh",)),
    "qwen2": (qwen2_mix, ("bbh",)),
}
CLOSED = ("closed-form-pmi:r=158,psd=shift", "closed-form-jsd:r=158,psd=shift")
EXACT = ("taskpgm-pmi", "taskpgm-jsd")
# By name: what it shows, the rows, and the key that is swept with its values.
TABLES = {
    "budgets": (
        "the paper's mixtures and the plain ones under three budgets",
        ("uniform", "size-proportional", "random-instances", *CLOSED, *EXACT),
        {"budget": (25_000, 50_000, 100_000)},
    ),
    "ratio": (
        "the ablation of the two terms: pure diversity (0), uniform (1), representative (above)",
        ("closed-form-pmi:psd=shift", "closed-form-jsd:psd=shift", *EXACT),
        {"ratio": (0, 0.5, 1, 2, 4, 16, 63.2, 158)},
    ),
    "baselines": (
        "plain mixtures and those of the authors' code",
        (
            *("uniform", "size-proportional", "random-instances", "softmax-pmi", "softmax-jsd"),
            *("clustered-pmi", "graph-laplacian-pmi", "pure-diversity-pmi", *CLOSED, *EXACT),
        ),
        {},
    ),
    "selection": (
        "the discrete variant: only k tasks",
        ("uniform", "select-pmi", "select-jsd"),
        {"k": (10, 20, 50, 100)},
    ),
    "gpt2": ("what GPT-2's adapters choose, as in all tables", (*CLOSED, *EXACT), {}),
    "own": ("what adapters of the model itself choose, beside `gpt2`", (*CLOSED, *EXACT), {}),
}


def get_config(arg="budgets-llama2"):
    table, _, family = arg.partition("-")
    if table not in TABLES or family not in FAMILIES:
        raise ValueError(
            f"configs/paper.py:{arg}: name a table and a family, {', '.join(TABLES)} and "
            f"{', '.join(FAMILIES)}, as in budgets-llama2"
        )
    recipe, benchmarks = FAMILIES[family]
    _, rows, swept = TABLES[table]
    config = gpt2_proxy.with_gpt2(recipe.get_config())
    if table == "own":  # with the same rows and contexts as GPT-2's, and the recipe's own rate
        config.proxy.path = ""
        config.adapters.optimizer.lr = recipe.get_config().adapters.optimizer.lr
    config.compare = rows
    config.evaluation.harness = benchmarks
    for key, values in swept.items():
        config.sweep[key] = values
    return config
