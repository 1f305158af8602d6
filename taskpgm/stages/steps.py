"""How many steps a run on a mixture takes."""

from typing import Any

import numpy as np

from taskpgm.stages.context import Context


def run_steps(context: Context, config: Any = None, tokens_per_example: float | None = None) -> int:
    """Steps of every run of one `config` (the context's, or a point's), whatever its mixture:
    `epochs` of the budget spread evenly over tasks.

    They follow from budget, batch size and data only, so that one more mixture in `compare` changes
    no other run.
    """
    config = context.config if config is None else config
    section = config.train
    if section.steps:
        return section.steps
    each = context.tokens_per_example if tokens_per_example is None else tokens_per_example
    rows = max(1, np.ceil(each * config.mixture.budget / config.tasks.length))
    return -(-int(np.ceil(section.epochs * rows)) // section.batch_size)
