"""Qwen2-7B on the tasks of llama2_mix.py, by the same recipe.

    python launch.py --config=configs/qwen2_mix.py --workdir=runs/qwen2 \
        --config.base.path=/models/Qwen2-7B

Hardware and cost: as llama2_mix.py. Not run by us.
"""

from configs import llama2_mix


def get_config():
    config = llama2_mix.get_config()
    config.base.path = "models/Qwen2-7B"
    return config
