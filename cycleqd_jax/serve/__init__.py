"""Models over HTTP, in the form of OpenAI's API: one model, or all models of a run, and the run's report.

:class:`EngineWorker` owns the engine, its thread and its queue, and has no code for HTTP. The layer above it needs the
packages of the extra ``serve``, which are imported by :func:`serve`.
"""

from cycleqd_jax.serve.catalog import Catalog, Entry, OneModel, RunCatalog, UnknownModel
from cycleqd_jax.serve.jobs import Job, News, QueueFull, ServerClosed, Ticket
from cycleqd_jax.serve.serve import Options, make_worker, open_catalog, serve
from cycleqd_jax.serve.weights import WeightCache
from cycleqd_jax.serve.worker import EngineWorker, WorkerState

__all__ = [
    "Catalog",
    "EngineWorker",
    "Entry",
    "Job",
    "News",
    "OneModel",
    "Options",
    "QueueFull",
    "RunCatalog",
    "ServerClosed",
    "Ticket",
    "UnknownModel",
    "WeightCache",
    "WorkerState",
    "make_worker",
    "open_catalog",
    "serve",
]
