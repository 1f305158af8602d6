"""Weights from a matrix alone: no model, no data, seconds on any machine.

    python launch.py --config=configs/mix_from_affinity.py --workdir=runs/mine \
        --config.affinity.matrix=PATH.npy --config.mixture.ratio=4

PATH is a symmetric n x n affinity: .npy, .npz (arrays `affinity` and, if you like, `tasks`), .csv
or .tsv (with a header row of task names). With `--config.affinity.kind=loss` it holds losses
instead, a row for each model and a column for each task, or is a folder of results of
lm-evaluation-harness; with `likelihood`, log-likelihoods of examples. The weights are in
mixture/weights.json, the page in report/.

With the tasks themselves, named as in the matrix, it goes on and trains a model on each mixture:

    python launch.py --config=configs/mix_from_affinity.py --workdir=runs/mine \
        --config.affinity.matrix=PATH.npy --config.tasks.source=my_tasks/ --config.base.path=MODEL
"""

from taskpgm.stages import default_config


def get_config():
    config = default_config()
    config.affinity.matrix = "affinity.npy"
    config.affinity.kind = "pmi"  # what the page calls it, and the rows of compare that read it
    config.compare = ("uniform", "taskpgm-pmi", "closed-form-pmi")
    config.mixture.ratio = "2.0"
    return config
