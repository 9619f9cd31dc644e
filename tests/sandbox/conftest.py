from __future__ import annotations

from collections.abc import Iterator

import pytest

from cycleqd_jax.sandbox import InfraError, Limits, Sandbox

LIMITS = Limits(wall_s=10.0, cpu_s=10.0)


def _sandbox(name: str) -> Iterator[Sandbox]:
    try:
        sandbox = Sandbox(name, limits=LIMITS)
    except InfraError as error:
        pytest.skip(f"the isolation {name!r} does not hold on this machine: {error}")
    with sandbox:
        yield sandbox


@pytest.fixture(scope="session", params=["bwrap", "userns", "none"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Every isolation: for behaviour that none of them may lack."""
    yield from _sandbox(request.param)


@pytest.fixture(scope="session", params=["bwrap", "userns"])
def sealed(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Isolations that isolate: attacks are run in these only."""
    yield from _sandbox(request.param)
