"""What a trained model is worth: held-out loss, exact match, and the public benchmarks."""

from taskpgm.evaluation.harness import HarnessModel, register, run_harness
from taskpgm.evaluation.heldout import evaluate, heldout_loss
from taskpgm.evaluation.summary import aggregate, samples

__all__ = [
    "HarnessModel",
    "aggregate",
    "evaluate",
    "heldout_loss",
    "register",
    "run_harness",
    "samples",
]
