"""Modules that tests import when they first use them."""

from __future__ import annotations

import importlib
from typing import Any

import pytest


class Lazy:
    """A module that is imported when it is first used; the test is skipped where the module is not installed.

    PyTorch and PEFT take ten seconds to import. A test process that runs none of their tests need not spend them.
    """

    def __init__(self, name: str, reason: str) -> None:
        self._name = name
        self._reason = reason

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(("_", "pytest")):  # pytest looks for its own marks on everything in a test module
            raise AttributeError(attribute)
        pytest.importorskip(self._name, reason=self._reason)
        return getattr(importlib.import_module(self._name), attribute)
