"""What a trained model is worth: test loss, exact match, and the public benchmarks."""

from taskpgm.evaluation.aggregate import aggregate, samples
from taskpgm.evaluation.harness import HarnessModel, register, run_harness
from taskpgm.evaluation.measure import evaluate, task_losses

__all__ = [
    "HarnessModel",
    "aggregate",
    "evaluate",
    "task_losses",
    "register",
    "run_harness",
    "samples",
]
