"""Mistral-7B on the tasks of llama2_mix.py, by the same recipe.

    python launch.py --config=configs/mistral_mix.py --workdir=runs/mistral \
        --config.base.path=/models/Mistral-7B-v0.1

Hardware and cost: as llama2_mix.py. The sliding window of 4096 is honoured. Not run by us.
"""

from configs import llama2_mix


def get_config():
    config = llama2_mix.get_config()
    config.base.path = "models/Mistral-7B-v0.1"
    return config
