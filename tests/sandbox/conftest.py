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
        pytest.skip(f"the isolation {name!r} does not work on this machine: {error}")
    with sandbox:
        yield sandbox


@pytest.fixture(scope="session", params=["bwrap", "userns", "none"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox under each isolation, for behaviour that all must have."""
    yield from _sandbox(request.param)


@pytest.fixture(scope="session", params=["bwrap", "userns"])
def sealed(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """A sandbox under each isolation that protects the host. Attacks run only in these."""
    yield from _sandbox(request.param)


@pytest.fixture
def still_works(sealed: Sandbox) -> Iterator[None]:
    """After the test, the sandbox must run the next program."""
    yield
    assert sealed.run_python("print('alive')").output == "alive\n"


@pytest.fixture(scope="session")
def rootfs() -> str:
    """The folder of a root file system that ``cycleqd sandbox build-rootfs`` has built."""
    if not os.environ.get("CYCLEQD_ROOTFS"):
        pytest.skip("CYCLEQD_ROOTFS does not name a root file system (cycleqd sandbox build-rootfs)")
    return os.environ["CYCLEQD_ROOTFS"]


@pytest.fixture(scope="session", params=["bwrap", "userns"])
def debian(request: pytest.FixtureRequest, rootfs: str) -> Iterator[Sandbox]:
    """As ``sealed``, with boxes that show a root file system."""
    yield from _sandbox(request.param, rootfs)


@pytest.fixture(scope="session", params=["host", "rootfs"])
def boxes(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """The strongest isolation, once with boxes that show the host and once with a root file system."""
    yield from _sandbox("auto", request.getfixturevalue("rootfs") if request.param == "rootfs" else None)
