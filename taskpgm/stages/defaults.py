"""Every key of a config, with its default and its meaning. A recipe in configs/ changes a few.

Sections belong to stages (see `flow.py`): changing a key concerns that stage and those after it.
"""

from ml_collections import ConfigDict


def default_config() -> ConfigDict:
    """The whole schema. Keys can be set, by a recipe or as `--config.a.b=value`, but not added."""
    config = ConfigDict()
    config.seed = 0

    # --- What is mixed -------------------------------------------------------------------------
    config.tasks = ConfigDict()
    # "stdlib" (the embedded suite), a folder of JSONL or Parquet files, a folder saved by
    # `datasets`, a YAML manifest of many, or the name of a data set on the hub.
    config.tasks.source = "stdlib"
    config.tasks.heldout_fraction = 0.1  # cut off, seeded, where a task brings no held-out split
    config.tasks.test_fraction = 0.1  # likewise, where a task brings no test split
    config.tasks.max_heldout = 0  # held-out examples used per task to choose a mixture; 0: all
    config.tasks.max_test = 0  # test examples used per task to judge a model; 0: all
    config.tasks.chat_template = ""  # a Jinja file, for chat rows where the tokenizer brings none
    config.tasks.length = 2048  # tokens in a packed row; longer prompts lose their beginning

    # --- The base model ------------------------------------------------------------------------
    config.base = ConfigDict()
    config.base.path = ""  # a Hugging Face folder; "": pretrain the small embedded one
    config.base.dtype = "float32"  # of activations; reductions are float32 whatever this is
    config.base.param_dtype = "float32"
    config.base.remat = "none"  # what the backward pass recomputes: none, dots, full
    config.base.attention = "auto"  # or a backend of models/attention.py: reference, cudnn, ...
    config.embedded = ConfigDict()  # only where base.path is empty
    config.embedded.vocab_size = 1024
    config.embedded.hidden_size = 128
    config.embedded.intermediate_size = 344
    config.embedded.num_layers = 4
    config.embedded.num_heads = 4
    config.embedded.num_kv_heads = 2
    config.embedded.task_share = 0.25  # share of its rows that are a thin sample of training tasks
    config.embedded.examples_per_task = 16  # that sample, never a held-out row
    config.embedded.steps = 400
    config.embedded.batch_size = 16
    config.embedded.checkpoint_every = 200
    config.embedded.optimizer = optimizer(lr=3e-3, weight_decay=0.1, warmup=0.05)

    # --- One model per task --------------------------------------------------------------------
    config.proxy = ConfigDict()
    config.proxy.path = ""  # single-task models are fine-tuned from this folder; "": from the base
    config.adapters = ConfigDict()
    config.adapters.mode = "lora"  # or "full": a whole copy per task, for small models
    config.adapters.lora = lora()
    config.adapters.optimizer = optimizer(lr=2e-4)
    config.adapters.epochs = 1.0
    config.adapters.min_steps = 1
    config.adapters.max_steps = 0  # 0: as many as `epochs` asks for
    config.adapters.batch_size = 8  # rows per task and step
    config.adapters.group = 0  # tasks trained side by side; 0: as many as memory takes
    config.adapters.memory = 0.0  # GiB a device has for a group; 0: what the device reports
    config.adapters.checkpoint_every = 200

    # --- How tasks relate ----------------------------------------------------------------------
    config.affinity = ConfigDict()
    config.affinity.matrix = ""  # a .npy, .npz or .csv matrix: then no model is needed at all
    config.affinity.kind = "pmi"  # with `matrix`: what it holds, pmi or jsd
    config.affinity.sizes = ""  # with `matrix`: a .json of {task: training size}, or empty
    config.affinity.normalize = "token"  # or "sequence": the likelihood of whole responses
    config.affinity.contexts = "pool"  # or "pair": whose held-out sets a JSD is taken over
    config.affinity.vocab_top_k = 0  # k: JSD of the k likeliest entries and the rest; 0: of all
    config.affinity.batch_size = 8
    config.affinity.memory = 1.0  # GiB that distributions may take at any time
    config.affinity.bootstrap = 200  # resamples for the intervals; 0: none

    # --- What to mix ---------------------------------------------------------------------------
    config.mixture = ConfigDict()
    config.mixture.ratio = 2.0  # unary / pairwise: 0 pure diversity, 1 uniform, >1 representative
    config.mixture.psd = "simplex"  # the least shift; or "shift" (the paper's), "clip"
    config.mixture.floor = 1e-3
    config.mixture.method = "exact"  # or "closed_form" (the paper's)
    config.mixture.budget = 25_000  # examples in the mixture
    config.mixture.max_epochs = 1.0  # no task is repeated more often than this
    # The mixtures compared; the names are the rows of taskpgm/stages/mixtures.py.
    config.compare = ("uniform", "size-proportional", "taskpgm-pmi", "taskpgm-jsd")

    # --- The models trained on the mixtures ----------------------------------------------------
    config.train = ConfigDict()
    config.train.mode = "full"  # or "lora"
    config.train.lora = lora()
    config.train.optimizer = optimizer(lr=2e-5)
    config.train.steps = 0  # the same for every mixture; 0: `epochs` of the largest of them
    config.train.epochs = 1.0
    config.train.seeds = 1  # models per mixture: their spread tells a difference from chance
    config.train.batch_size = 16  # rows per step, over all devices
    config.train.accumulate = 1  # micro-batches a step
    config.train.checkpoint_every = 500
    config.train.keep = 2  # checkpoints kept: were the newest damaged, a run goes on from the other

    # --- What it is worth ----------------------------------------------------------------------
    config.evaluation = ConfigDict()
    config.evaluation.batch_size = 16
    config.evaluation.exact_match_examples = 0  # per task, answers generated; 0: all test rows
    config.evaluation.max_new_tokens = 32
    config.evaluation.harness = ()  # lm-evaluation-harness tasks, e.g. ("mmlu", "bbh")
    config.evaluation.harness_path = ""  # a folder of task YAML files of your own, or one file
    config.evaluation.harness_num_fewshot = -1  # examples in the context; -1: what the task says
    config.evaluation.harness_limit = 0  # at most so many examples of each harness task; 0: all
    config.evaluation.harness_batch_size = 8  # rows, or prompts, at a time
    config.evaluation.harness_chat_template = False  # prompts as chats, by the tokenizer's template

    # --- The machine ---------------------------------------------------------------------------
    config.mesh = ConfigDict({"task": 1, "data": -1, "fsdp": 1, "tensor": 1})  # -1: what is left
    config.log_every = 20  # steps between two lines of metrics.jsonl
    return config


def optimizer(lr: float, weight_decay: float = 0.0, warmup: float = 0.01) -> ConfigDict:
    """AdamW with a warm-up (a share of all steps) and a decay to zero."""
    return ConfigDict(
        {
            "lr": lr,
            "schedule": "cosine",  # or linear, constant
            "warmup": warmup,
            "weight_decay": weight_decay,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "clip": 1.0,  # global norm of the gradient; 0: unclipped
        }
    )


def lora() -> ConfigDict:
    """Low-rank adapters (Hu et al. 2021) on the named matrices."""
    return ConfigDict(
        {
            "rank": 8,
            "alpha": 32.0,
            "dropout": 0.0,
            "targets": ("q_proj", "k_proj", "v_proj", "o_proj"),
        }
    )
