"""CycleQD in JAX: evolve fine-tuned experts that share a base model into one model that combines their skills.

The names below are imported from their subpackages when they are first used::

    import cycleqd_jax as cq

    model = cq.load_model("runs/quickstart/model")
    model.generate("How many files are in /tmp?", max_new_tokens=32)

    space = cq.ExpertSpace.from_experts(base, experts)
    search = cq.CycleQD(space)  # also cq.PlainQD, and over merging coefficients cq.CMAES, cq.NSGA2, cq.RandomSearch

    with cq.Run(cq.load_config("configs/quickstart.yaml")) as run:
        run.train()
        run.evolve()
        run.evaluate()
        run.export()
    cq.open_run(run.folder).archives
    cq.compare(run.config, "configs/methods/table1.yaml", seeds=[0, 1, 2], budget=100)  # several methods

Every subpackage can also be imported on its own: ``cycleqd_jax.operators``, ``cycleqd_jax.genome``, ``cycleqd_jax.algorithms``,
``cycleqd_jax.models``, ``cycleqd_jax.engine`` and so on.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from cycleqd_jax.version import __version__

if TYPE_CHECKING:
    from cycleqd_jax import operators
    from cycleqd_jax.algorithms import CMAES, NSGA2, CycleQD, PlainQD, RandomSearch
    from cycleqd_jax.algorithms.aggregation import aggregate
    from cycleqd_jax.config import RunConfig, load_config
    from cycleqd_jax.engine import ChatGenerator, Engine, Model, load_model
    from cycleqd_jax.genome import CoefficientSpace, DenseSpace, ExpertSpace
    from cycleqd_jax.report import RunFolder, open_run
    from cycleqd_jax.runs import Run, compare
    from cycleqd_jax.sandbox import InfraError
    from cycleqd_jax.tasks import RecordTask
    from cycleqd_jax.types import Adapter, FailuresError, InputError, LowRank

_SUBPACKAGES = {
    "Adapter": "types",
    "CMAES": "algorithms",
    "ChatGenerator": "engine",
    "CoefficientSpace": "genome",
    "CycleQD": "algorithms",
    "DenseSpace": "genome",
    "Engine": "engine",
    "ExpertSpace": "genome",
    "FailuresError": "types",
    "InfraError": "sandbox",
    "InputError": "types",
    "LowRank": "types",
    "Model": "engine",
    "NSGA2": "algorithms",
    "PlainQD": "algorithms",
    "RandomSearch": "algorithms",
    "RecordTask": "tasks",
    "Run": "runs",
    "RunConfig": "config",
    "RunFolder": "report",
    "aggregate": "algorithms",
    "compare": "runs",
    "load_config": "config",
    "load_model": "engine",
    "open_run": "report",
}
"""The subpackage or module of every public name."""

__all__ = [
    "CMAES",
    "NSGA2",
    "Adapter",
    "ChatGenerator",
    "CoefficientSpace",
    "CycleQD",
    "DenseSpace",
    "Engine",
    "ExpertSpace",
    "FailuresError",
    "InfraError",
    "InputError",
    "LowRank",
    "Model",
    "PlainQD",
    "RandomSearch",
    "RecordTask",
    "Run",
    "RunConfig",
    "RunFolder",
    "__version__",
    "aggregate",
    "compare",
    "load_config",
    "load_model",
    "open_run",
    "operators",
]


def __getattr__(name: str) -> Any:
    """Imports a public name from its subpackage (PEP 562)."""
    if name == "operators":
        return importlib.import_module("cycleqd_jax.operators")
    if name not in _SUBPACKAGES:
        raise AttributeError(f"module 'cycleqd_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"cycleqd_jax.{_SUBPACKAGES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
