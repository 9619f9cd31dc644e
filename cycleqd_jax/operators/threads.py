"""One thread for LAPACK, so that decompositions repeat bit for bit on any number of cores."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

import threadpoolctl

__all__ = ["single_threaded_lapack"]


@contextlib.contextmanager
def single_threaded_lapack() -> Iterator[None]:
    """Limits BLAS and LAPACK to one thread inside the block.

    On a CPU, JAX decomposes matrices with SciPy's LAPACK, whose last bits depend on its number of threads. With one thread the
    result is the same on any number of cores. XLA's own threads are not affected. JAX computes
    asynchronously: call ``jax.block_until_ready`` on the results inside the block. :class:`cycleqd_jax.Run`,
    :meth:`cycleqd_jax.ExpertSpace.from_experts` and :func:`cycleqd_jax.operators.factorize` use this by themselves, and so does
    :meth:`cycleqd_jax.DenseSpace.mutate` outside ``jax.jit``. But ``ask`` of a searcher is a compiled program, which decomposes
    in every call for a :class:`cycleqd_jax.DenseSpace` with SVD mutation: put the whole search inside the block.
    """
    importlib.import_module("scipy.linalg")  # JAX loads it with its first decomposition, which would be too late for the limit
    with threadpoolctl.threadpool_limits(limits=1, user_api="blas"):
        yield
