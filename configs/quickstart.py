"""The whole pipeline on the embedded suite: `make demo`, or

    python launch.py --config=configs/quickstart.py --workdir=runs/quickstart

Hardware: 2 CPU cores, 4 GiB, no network. A small Llama-shaped model is pretrained on the
documentation of Python itself, then fine-tuned on each task alone, then on each mixture.
"""

from taskpgm.stages import default_config


def get_config():
    config = default_config()

    config.tasks.source = "stdlib"
    config.tasks.length = 128

    config.embedded.hidden_size = 96
    config.embedded.intermediate_size = 256
    config.embedded.num_layers = 3
    config.embedded.steps = 350
    config.embedded.batch_size = 16
    config.embedded.task_share = 0.3
    config.embedded.optimizer.lr = 4e-3

    config.adapters.lora.rank = 8
    config.adapters.lora.alpha = 16.0
    config.adapters.lora.targets = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )
    config.adapters.optimizer.lr = 5e-3
    config.adapters.epochs = 3.0
    config.adapters.min_steps = 20
    config.adapters.max_steps = 60
    config.adapters.batch_size = 4
    config.adapters.group = 9

    config.affinity.batch_size = 8
    config.affinity.memory = 0.5

    config.mixture.budget = 6000
    config.mixture.max_epochs = 4.0

    config.compare = (
        "uniform",
        "uniform-families",
        "size-proportional",
        "taskpgm-pmi",
        "taskpgm-jsd",
        "taskpgm-transfer",
        "taskpgm-predicted",
    )

    config.train.mode = "full"
    config.train.optimizer.lr = 3e-3
    config.train.seeds = 3
    config.train.batch_size = 8
    config.train.checkpoint_every = 200

    config.evaluation.exact_match_examples = 16
    config.evaluation.max_new_tokens = 16
    config.log_every = 10
    return config
