"""The persistent compilation cache of runs and commands, and the kind of device that programs are compiled for."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from cycleqd_jax.files import digest, make_folder
from cycleqd_jax.machine import cpu_count

__all__ = ["cpu_kind", "device_kind", "persistent_compilation"]


@contextlib.contextmanager
def persistent_compilation(cache: Path) -> Iterator[None]:
    """Keeps compiled programs in a folder, so that the next start loads them instead of compiling.

    A compilation cache that the user has configured (``jax_compilation_cache_dir``) is left as it is.

    Args:
        cache: the folder that runs share; programs go to a folder below it that is named after what they depend on beside their
            source: the machine's instruction set, the number of cores that the process may use, and ``XLA_FLAGS``.

    Raises:
        InputError: the folder can't be made.
    """
    if getattr(jax.config, "jax_compilation_cache_dir"):  # noqa: B009 (the type checker lacks it)
        yield
        return
    folder = cache / "compiled" / digest([_cpu(), cpu_count(), os.environ.get("XLA_FLAGS", "")], digits=16)
    make_folder(folder)
    settings: dict[str, Any] = {
        "jax_compilation_cache_dir": str(folder.absolute()),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    _configure(settings)
    try:
        yield
    finally:
        _configure(before)


def _configure(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX decides once whether there is a cache


def cpu_kind() -> str:
    """Eight hexadecimal digits that identify the instruction set of this machine's CPU."""
    return digest(_cpu(), digits=8)


def device_kind() -> str:
    """The kind of this process's devices; of CPUs also a digest of their instruction set, on which the last bits depend."""
    device = jax.local_devices()[0]
    return f"cpu {cpu_kind()}" if device.platform == "cpu" else f"{device.platform} {device.device_kind}"


def _cpu() -> str:
    """The machine's kind and instruction set: programs compiled for one CPU may not run on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
