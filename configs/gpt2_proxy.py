"""A cheap proxy: single-task models are GPT-2, whole; the mixture they suggest trains Llama-2-7B.

    python launch.py --config=configs/gpt2_proxy.py --workdir=runs/gpt2_proxy \
        --config.proxy.path=/models/gpt2 --config.base.path=/models/Llama-2-7b-hf

Hardware: one GPU for the stages up to `mixture` (`--stage=mixture`), then as llama2_mix.py. The
affinity then says how tasks relate to GPT-2; that it carries over to Llama-2 is an assumption,
which the evaluation tests. Not run by us.
"""

from configs import llama2_mix


def get_config():
    config = llama2_mix.get_config()

    config.tasks.length = 1024  # GPT-2 has no more positions
    config.proxy.path = "models/gpt2"
    config.adapters.mode = "full"
    config.adapters.optimizer.lr = 5e-5
    config.adapters.batch_size = 8
    config.affinity.contexts = "pair"
    config.train.batch_size = 128  # as many tokens a step as 32 rows of 4096
    return config
