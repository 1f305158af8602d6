"""The other ways to choose a mixture: small pure functions, one idea a file."""

from taskpgm.mixture.baselines.size_proportional import size_proportional
from taskpgm.mixture.baselines.uniform import uniform

__all__ = ["size_proportional", "uniform"]
