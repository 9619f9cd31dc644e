from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cycleqd_jax.sandbox import InfraError, Limits, Sandbox

LIMITS = Limits(wall_s=10.0, cpu_s=10.0)


def _sandbox(name: str, rootfs: str | None = None) -> Iterator[Sandbox]:
    try:
        sandbox = Sandbox(name, limits=LIMITS, rootfs=rootfs)
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


@pytest.fixture(scope="session")
def rootfs() -> str:
    """A root file system that was built before, by ``cycleqd sandbox build-rootfs``."""
    if not os.environ.get("CYCLEQD_ROOTFS"):
        pytest.skip("CYCLEQD_ROOTFS does not name a root file system (cycleqd sandbox build-rootfs)")
    return os.environ["CYCLEQD_ROOTFS"]


@pytest.fixture(scope="session", params=["bwrap", "userns"])
def debian(request: pytest.FixtureRequest, rootfs: str) -> Iterator[Sandbox]:
    """Isolations that isolate, with boxes that show a root file system."""
    yield from _sandbox(request.param, rootfs)


@pytest.fixture(scope="session", params=["host", "rootfs"])
def boxes(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """The strongest isolation, with what boxes can show."""
    yield from _sandbox("auto", request.getfixturevalue("rootfs") if request.param == "rootfs" else None)
