"""Fixtures for tests of genome spaces."""

import inspect

import pytest


@pytest.fixture(scope="session")
def unchecked():
    """``unchecked(function)`` is a function or class method without the check of annotations, to test its own checks."""

    def unwrap(function):
        plain = inspect.unwrap(getattr(function, "__func__", function))
        return plain.__get__(function.__self__) if inspect.ismethod(function) else plain

    return unwrap
