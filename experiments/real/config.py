"""The config of the real study: its rows, its sizes, and what is fixed (protocol.md).

study.py starts it with the folders that it has prepared. A row is added by a line of ROWS: runs
that are done stay. The second budget is a sweep.
"""

from ml_collections import ConfigDict

from taskpgm.stages import default_config

# Rows of config.compare, and what each is here for.
ROWS = {
    "uniform": "every task alike",
    "uniform-families": "every family alike; it is told the families",
    "size-proportional": "by training rows",
    "random-instances": "rows drawn from the union",
    "closed-form-pmi:psd=shift": "the paper's: its shift and its closed form, PMI",
    "closed-form-jsd:psd=shift": "the paper's, JSD",
    "closed-form-pmi:psd=shift,r=12.5": "the paper's at its authors' ratio, beta / lambda = 1/2",
    "taskpgm-pmi": "ours: the least shift, exact",
    "taskpgm-jsd": "ours",
    "taskpgm-transfer": "ours: transfer as an affinity",
    "taskpgm-predicted": "ours: least predicted loss",
    "select-pmi:k=12": "ours: about half of the tasks",
    "mixmin": "MixMin: the ensemble of single-task models",
    "smart": "SMART: facility location over embeddings of prompts",
    "chameleon": "Chameleon: leverage scores of embeddings",
    "softmax-pmi": "control: row sums alone",
    "permuted-pmi": "control: the affinity of other tasks",
}
BUDGETS = (300, 1200)  # examples
SEEDS = 5
# All seven kinds of matrices, as for the single-task models of every study here.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def get_config() -> ConfigDict:
    config = default_config()

    config.tasks.length = 128
    config.tasks.max_heldout = 30
    config.tasks.max_test = 40

    for section in (config.adapters, config.train):
        section.mode = "lora"
        section.lora.rank = 8
        section.lora.alpha = 16.0
        section.lora.targets = TARGETS
        section.optimizer.lr = 1e-3
        section.optimizer.warmup = 0.1
    config.adapters.min_steps = config.adapters.max_steps = 12
    config.adapters.batch_size = 4
    config.adapters.group = 5

    config.affinity.memory = 1.0
    config.affinity.batch_size = 16

    config.mixture.ratio = "auto"
    config.mixture.max_epochs = 2.0
    config.mixture.budget = BUDGETS[0]

    config.compare, config.train.seeds = tuple(ROWS), SEEDS
    config.train.batch_size = 8
    config.train.keep = 1

    config.evaluation.exact_match_examples = 4
    config.evaluation.max_new_tokens = 16
    config.log_every = 5
    return config
