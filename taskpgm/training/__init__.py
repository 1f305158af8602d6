"""How it learns: mesh, loss, optimizer, step, loop, checkpoints, metrics."""

from taskpgm.training.boards import check_board
from taskpgm.training.checkpoint import Damaged, restore_tree, save_tree
from taskpgm.training.flops import (
    flops_per_token,
    forward_flops_per_token,
    matrices,
    num_adapter_params,
    peak_flops,
)
from taskpgm.training.gradients import (
    Moments,
    Sketch,
    adam_moments,
    gradient_features,
    make_sketch,
)
from taskpgm.training.loop import Preempted, fit
from taskpgm.training.loss import cross_entropy
from taskpgm.training.memory import (
    Memory,
    device_memory,
    estimate_memory,
    forward_memory,
    group_size,
    host_memory,
    model_bytes,
)
from taskpgm.training.mesh import (
    AXES,
    make_mesh,
    place,
    put_batch,
    stacked,
)
from taskpgm.training.metrics import Writer
from taskpgm.training.optimizer import Optimizer, make_optimizer
from taskpgm.training.quiet import quiet_orbax
from taskpgm.training.state import TrainState, create_state, init_sharded, unstack
from taskpgm.training.step import make_train_step

__all__ = [
    "AXES",
    "Damaged",
    "Memory",
    "Moments",
    "Optimizer",
    "Preempted",
    "Sketch",
    "TrainState",
    "Writer",
    "adam_moments",
    "check_board",
    "create_state",
    "cross_entropy",
    "device_memory",
    "estimate_memory",
    "fit",
    "flops_per_token",
    "forward_flops_per_token",
    "forward_memory",
    "gradient_features",
    "group_size",
    "host_memory",
    "init_sharded",
    "make_mesh",
    "make_optimizer",
    "make_sketch",
    "make_train_step",
    "matrices",
    "model_bytes",
    "num_adapter_params",
    "peak_flops",
    "place",
    "put_batch",
    "quiet_orbax",
    "restore_tree",
    "save_tree",
    "stacked",
    "unstack",
]
