"""Llama-2-7B on T0, Flan2021, CoT, Tulu and SuperGLUE: the published recipe (arXiv 2507.12612).

    python launch.py --config=configs/llama2_mix.py --workdir=runs/llama2 \
        --config.base.path=/models/Llama-2-7b-hf

Hardware: eight GPUs of 80 GB, or a TPU slice with as much memory; fewer with
--config.train.mode=lora.
Cost: --dry_run prints it for your data. Not run by us (no such machine): the recipe is the paper's,
25,000 examples, AdamW, 2e-5 with cosine decay and 1% warm-up, one epoch of length 4096 in bfloat16;
single-task models are LoRA adapters of rank 8.
"""

from taskpgm.stages import default_config


def get_config():
    config = default_config()

    config.tasks.source = "configs/flan_mix.yaml"
    config.tasks.chat_template = "configs/tulu_chat.jinja"  # the base's tokenizer brings none
    config.tasks.length = 4096
    config.tasks.max_heldout = 64

    config.base.path = "models/Llama-2-7b-hf"
    config.base.dtype = "bfloat16"
    config.base.param_dtype = "float32"  # in bfloat16 most updates of 2e-5 would round to nothing
    config.base.remat = "full"

    config.adapters.mode = "lora"
    config.adapters.lora.rank = 8
    config.adapters.lora.alpha = 32.0
    config.adapters.optimizer.lr = 2e-4
    config.adapters.epochs = 1.0
    config.adapters.max_steps = 200
    config.adapters.batch_size = 8

    # GiB; with 1 every model is read ten times as often. A device of 16 GB takes 8.
    config.affinity.memory = 16.0

    config.mixture.budget = 25_000
    config.mixture.max_epochs = 1.0
    config.mixture.ratio = "2.0"

    config.train.mode = "full"
    config.train.optimizer.lr = 2e-5
    config.train.optimizer.schedule = "cosine"
    config.train.optimizer.warmup = 0.01
    config.train.optimizer.weight_decay = 0.1
    config.train.epochs = 1.0
    config.train.batch_size = 32
    config.train.accumulate = 4
    config.train.checkpoint_every = 100

    config.evaluation.max_new_tokens = 64
    config.evaluation.harness = ("mmlu", "bbh")  # needs `pip install -e '.[eval]'`

    config.mesh.data = 1
    config.mesh.fsdp = -1
    return config
