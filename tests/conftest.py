"""What every test may rely on: JAX on eight simulated CPU devices, data, hypothesis, and one measure of closeness."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path

# Before jax is imported anywhere: sharded code is tested on simulated devices. What the environment sets stays.
DEVICES_FLAG = "--xla_force_host_platform_device_count"
if DEVICES_FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES_FLAG}=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # otherwise LAPACK starts threads for every simulated device

import beartype  # noqa: E402
import jaxtyping  # noqa: E402

# Types, shapes and dtypes written in annotations are checked while the tests run, and only then. An int is a float (PEP 484).
_checks = types.ModuleType("checks_of_types")
vars(_checks)["check"] = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
sys.modules["checks_of_types"] = _checks
_hook = jaxtyping.install_import_hook("cycleqd_jax", "checks_of_types.check")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import compilation_cache  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "default", deadline=None, derandomize="CI" in os.environ, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("default")


def pytest_configure(config):
    """Most tests compile without optimisation. Most compiled programs run once, and compiling them takes longer.

    The older emitters of fusions halve the time of compilation. ``-m`` without ``not as_users`` compiles as for users: so
    ``scripts/test.sh --all`` runs the tests marked ``e2e`` and ``as_users`` after the others.
    """
    if "not as_users" in config.option.markexpr:
        quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        if jax.__version_info__ < (0, 11):  # XLA refuses flags that it does not know
            quick += " --xla_cpu_use_fusion_emitters=false"
        os.environ["XLA_FLAGS"] = f"{quick} {os.environ['XLA_FLAGS']}"  # the flags of the environment override these


@pytest.hookimpl(trylast=True)  # after pytest has removed the tests that -m excludes
def pytest_collection_modifyitems(items):
    """Tests of the finished run come at the beginning and the end, the others between them.

    The first worker begins with the first test and makes the run. The second one begins after its share of the tests, and does
    not wait meanwhile.
    """
    finished = [item for item in items if "finished" in item.fixturenames]
    others = [item for item in items if "finished" not in item.fixturenames]
    before = len(items) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    items[:] = finished[:before] + others + finished[before:]


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory) -> dict[str, str]:
    """What one test has compiled no other test of this session compiles again, in whichever worker: it lies in a folder.

    Returns:
        The environment of a process that is to use the folder too. Others that tests start do not: XLA compiles for a number of
        threads, and finds the program again whatever the number is. Where that is what a test is about, it compiles its own.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    settings = {
        "jax_compilation_cache_dir": os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(shared / "compiled"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # if anything was compiled while tests were collected, it was settled that there is none
    return {name.upper(): str(value) for name, value in settings.items()}


@pytest.fixture(scope="module", autouse=True)
def forgotten(compiled):
    """Programs that a module has compiled are freed after it, before Linux refuses the process another mapping.

    XLA maps every program of a CPU into memory several times over; a process may have 65,530 mappings, and crashes within XLA
    where it asks for more.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 10_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of third-party evaluation data; it is not part of the repository."""
    folder = os.environ.get("CYCLEQD_DATA")
    if not folder:
        pytest.skip("CYCLEQD_DATA does not name the folder of third-party evaluation data")
    if not Path(folder).is_dir():
        pytest.skip(f"CYCLEQD_DATA names {folder}, which is not a folder")
    return Path(folder)


@pytest.fixture(scope="session")
def assert_close():
    """``assert_close(got, want, tol=1e-6, scale=None)`` for trees of arrays.

    The error is relative to the norm of the matrix: for every leaf, and for every matrix of a stack,
    ‖got − want‖_F ≤ tol · ‖want‖_F in float64. ``scale`` replaces ‖want‖_F where the expected matrix is zero or the
    outcome of a cancellation.
    """

    def check(got, want, tol: float = 1e-6, scale: float | None = None) -> None:
        got, treedef = jax.tree.flatten(got)
        want, expected_treedef = jax.tree.flatten(want)
        assert treedef == expected_treedef
        for g, w in zip(got, want, strict=True):
            g, w = np.asarray(g, np.float64), np.asarray(w, np.float64)
            assert g.shape == w.shape
            axes = tuple(range(max(w.ndim - 2, 0), w.ndim))
            error = np.sqrt(((g - w) ** 2).sum(axis=axes))
            norm = np.sqrt((w**2).sum(axis=axes)) if scale is None else scale
            assert np.all(error <= tol * norm), f"relative error {np.max(error / np.maximum(norm, 1e-300)):.2e} > {tol:.0e}"

    return check


@pytest.fixture(scope="session")
def assert_identical():
    """``assert_identical(got, want)``: the same tree, dtypes and bits."""

    def check(got, want) -> None:
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for (path, g), w in zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(want), strict=True):
            g, w = np.asarray(g), np.asarray(w)
            assert g.dtype == w.dtype
            np.testing.assert_array_equal(g, w, err_msg=jax.tree_util.keystr(path))

    return check


@pytest.fixture
def compilations(caplog):
    """``compilations(f)`` calls ``f`` and says how many functions were compiled meanwhile."""

    def count(function) -> int:
        caplog.clear()
        with jax.log_compiles(True):
            jax.block_until_ready(function())
        return sum(record.getMessage().startswith("Compiling ") for record in caplog.records)

    return count
