"""Weights from a matrix alone: no model, no data, seconds on any machine.

    python launch.py --config=configs/mix_from_affinity.py --workdir=runs/mine \
        --config.affinity.matrix=PATH.npy --config.mixture.ratio=4

PATH is a symmetric n x n affinity: .npy, .npz (arrays `affinity` and, if you like, `tasks`) or .csv
(with a header row of task names). The weights are in mixture/weights.json, the page in report/.
"""

from taskpgm.stages import default_config


def get_config():
    config = default_config()
    config.affinity.matrix = "affinity.npy"
    config.affinity.kind = "pmi"  # what the page calls it, and the rows of compare that read it
    config.compare = ("uniform", "taskpgm-pmi", "closed-form-pmi")
    config.mixture.ratio = "2.0"
    return config
