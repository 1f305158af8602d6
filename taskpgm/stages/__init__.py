"""The flow from tasks to the page: each stage reads and writes the workdir, skipped when done.

`launch.py` uses nothing but this package; this package alone knows all others.
"""

from taskpgm.multihost import fail
from taskpgm.stages.defaults import default_config
from taskpgm.stages.flow import STAGES, run
from taskpgm.stages.validation import misspelt, validate

__all__ = ["STAGES", "default_config", "fail", "misspelt", "run", "validate"]
