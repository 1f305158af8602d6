"""Modules that take seconds to import, imported by the first test that uses them.

Every worker collects every file: what a file imports is paid for by all runs, even those that leave
its tests out.
"""

import pytest


class Lazily:
    """`torch = Lazily("torch")` is the module; where it is not installed, its tests are skipped."""

    def __init__(self, name: str, reason: str | None = None):
        self.name, self.reason = name, reason

    def __getattr__(self, attribute: str):
        if attribute.startswith("__"):  # pytest asks everything that it collects for __test__
            raise AttributeError(attribute)
        return getattr(pytest.importorskip(self.name, reason=self.reason), attribute)
