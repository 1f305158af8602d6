"""LLaMA-7B, the first of its name, on the tasks of llama2_mix.py, by the same recipe.

    python launch.py --config=configs/llama_mix.py --workdir=runs/llama \
        --config.base.path=/models/llama-7b

Hardware and cost: as llama2_mix.py. It has 2048 positions, so a step is 64 rows of 2048 tokens
instead of 32 of 4096. Not run by us.
"""

from configs import llama2_mix


def get_config():
    config = llama2_mix.get_config()
    config.base.path = "models/llama-7b"
    config.tasks.length = 2048
    config.train.batch_size = 64
    return config
