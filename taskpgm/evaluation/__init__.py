"""What a trained model is worth: test loss, exact match, and the public benchmarks."""

from taskpgm.evaluation.aggregate import aggregate, samples
from taskpgm.evaluation.benchmark_plan import harness_tokens, look_for_data
from taskpgm.evaluation.benchmarks import check_harness, run_harness
from taskpgm.evaluation.comparison import compare_runs
from taskpgm.evaluation.harness import HarnessModel
from taskpgm.evaluation.measure import answers_cut_off, evaluate, last_response, task_losses

__all__ = [
    "HarnessModel",
    "aggregate",
    "answers_cut_off",
    "check_harness",
    "compare_runs",
    "evaluate",
    "harness_tokens",
    "last_response",
    "look_for_data",
    "run_harness",
    "samples",
    "task_losses",
]
