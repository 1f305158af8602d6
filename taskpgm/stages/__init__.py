"""The flow from tasks to the report: each stage reads and writes the workdir, and is skipped when
it is done.

`launch.py` uses only this package, and only this package knows all others.
"""

from taskpgm.multihost import fail
from taskpgm.stages.defaults import default_config
from taskpgm.stages.flow import STAGES, run
from taskpgm.stages.on_ray import run_on_ray
from taskpgm.stages.validation import misspelt, unreadable, validate

__all__ = [
    "STAGES",
    "default_config",
    "fail",
    "misspelt",
    "run",
    "run_on_ray",
    "unreadable",
    "validate",
]
