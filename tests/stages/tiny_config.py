"""A run of the whole flow in seconds: a model of a few thousand weights. Tests point it at data."""

from taskpgm.stages import default_config


def get_config():
    config = default_config()
    config.tasks.length = 48

    config.embedded.vocab_size = 300
    config.embedded.hidden_size = 16
    config.embedded.intermediate_size = 32
    config.embedded.num_layers = 2
    config.embedded.num_heads = 2
    config.embedded.num_kv_heads = 1
    config.embedded.steps = 6
    config.embedded.batch_size = 4
    config.embedded.checkpoint_every = 3

    config.adapters.lora.rank = 2
    config.adapters.optimizer.lr = 1e-2
    config.adapters.min_steps = 3
    config.adapters.max_steps = 4
    config.adapters.batch_size = 2
    config.adapters.group = 2
    config.adapters.checkpoint_every = 2

    config.affinity.batch_size = 4
    config.affinity.bootstrap = 8
    config.mixture.budget = 24
    config.mixture.ratio = "0.5"

    config.train.optimizer.lr = 1e-3
    config.train.batch_size = 4
    config.train.steps = 6
    config.train.checkpoint_every = 2

    config.evaluation.batch_size = 4
    config.evaluation.max_new_tokens = 4
    config.evaluation.exact_match_examples = 2
    config.log_every = 2
    config.mesh.data = 1
    return config
