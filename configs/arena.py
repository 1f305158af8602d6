"""The arena: every way to choose a mixture that the house knows, at equal budget, in one workdir.

    python launch.py --config=configs/arena.py --workdir=runs/arena

The suite and the model of `quickstart.py`; beside what each mixture is worth stands what choosing
it cost. Hardware: 2 CPU cores, 4 GiB, no network. `--dry_run` tells the costs before they are paid.
"""

from configs import quickstart

# Every row of the table but `weights`, which needs a file.
ROWS = (
    "uniform",
    "uniform-families",
    "size-proportional",
    "random-instances",
    "taskpgm-pmi",
    "taskpgm-jsd",
    "taskpgm-transfer",
    "taskpgm-predicted",
    "select-pmi:k=12",
    "select-jsd:k=12",
    "select-transfer:k=12",
    "closed-form-pmi:psd=shift",
    "closed-form-jsd:psd=shift",
    "clustered-pmi",
    "clustered-jsd",
    "graph-laplacian-pmi",
    "graph-laplacian-jsd",
    "pure-diversity-pmi",
    "pure-diversity-jsd",
    "softmax-pmi",
    "softmax-jsd",
    "permuted-pmi",
    "permuted-jsd",
    "mixmin",
    "smart",
    "chameleon",
    "regmix:runs=64,regressor=ridge",
    "doremi",
    "skill-it",
    "less:rows=64",
)


def get_config():
    config = quickstart.get_config()
    config.compare = ROWS
    config.train.seeds = 2
    return config
