"""What a trained model is worth: held-out loss, exact match, and the public benchmarks."""

from taskpgm.evaluation.harness import HarnessModel, evaluate_harness, register
from taskpgm.evaluation.heldout import aggregate, evaluate, heldout_loss, samples

__all__ = [
    "HarnessModel",
    "aggregate",
    "evaluate",
    "evaluate_harness",
    "heldout_loss",
    "register",
    "samples",
]
