"""Puts the parts together: models, engine, worker, application, server."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import math
import os
import sys
from collections.abc import Callable, Hashable
from pathlib import Path

from cycleqd_jax import report
from cycleqd_jax.compilation import persistent_compilation
from cycleqd_jax.config import RunConfig
from cycleqd_jax.engine import load_model
from cycleqd_jax.models.files.checkpoint import open_checkpoint
from cycleqd_jax.runs.folder.models import RunModels
from cycleqd_jax.serve.catalog import Catalog, OneModel, RunCatalog
from cycleqd_jax.serve.weights import WeightCache
from cycleqd_jax.serve.worker import EngineWorker
from cycleqd_jax.types import InputError, no_progress

__all__ = ["KEY_VARIABLE", "Options", "make_worker", "open_catalog", "serve"]

KEY_VARIABLE = "CYCLEQD_API_KEY"
"""The environment variable of the key."""

MOST_POSITIONS = 2048
"""Tokens of prompt and reply where the model has more positions and no other number is given."""


@dataclasses.dataclass(frozen=True)
class Options:
    """How to serve.

    Attributes:
        host: the address to listen on.
        port: the port; 0 is any free one.
        slots: replies that are decoded at the same time.
        waiting: the most requests that wait.
        max_len: the most tokens of a prompt and its reply; None is the model's, at most 2048.
        weights_gib: memory for expressed weights of a run's models, in GiB.
        max_body: the most bytes of a request.
        stall_s: seconds that a client may leave a full socket unread.
        grace_s: seconds for accepted requests after SIGTERM.
        key: the key that clients must give; None takes that of the environment.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 8
    waiting: int = 64
    max_len: int | None = None
    weights_gib: float = 4.0
    max_body: int = 2**20
    stall_s: float = 60.0
    grace_s: float = 30.0
    key: str | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Checks the numbers.

        Raises:
            InputError: one is out of its range.
        """
        least = {"slots": 1, "waiting": 0, "port": 0, "weights_gib": 0, "max_body": 1, "stall_s": 0, "grace_s": 0}
        for name, low in least.items():
            if not low <= getattr(self, name) < math.inf:  # neither is NaN
                option = name.replace("_", "-")
                raise InputError(f"expected --{option} to be at least {low}, got {getattr(self, name)}; correct it")
        if self.port > 65_535:
            raise InputError(f"expected --port from 0 to 65535, got {self.port}; correct it")
        if self.max_len is not None and self.max_len < 2:
            raise InputError(f"expected --max-len to be at least 2, got {self.max_len}; correct it")


def serve(what: str, options: Options, log: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> None:
    """Serves a model, or all models of a run, until SIGTERM or SIGINT.

    Args:
        what: a run folder, a Hugging Face folder, a ``.gguf`` file or a repository on the hub.
        options: how.
        log: called with single lines.

    Raises:
        InputError: the model or the run can't be read, an option does not fit, the address can't be used, or a package is
            missing.
    """
    for package in ("starlette", "uvicorn"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise InputError(
                f"expected the package {package} for cycleqd serve, got none; run pip install 'cycleqd_jax[serve]'"
            ) from None
    from cycleqd_jax.serve.api import Limits
    from cycleqd_jax.serve.app import make_app
    from cycleqd_jax.serve.http import is_loopback
    from cycleqd_jax.serve.server import check_address, run_server

    key = options.key if options.key is not None else os.environ.get(KEY_VARIABLE)
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
        raise InputError(
            f"expected a key of printable ASCII characters in --api-key or {KEY_VARIABLE}, got an empty or another one; give "
            "another key, or none"
        )
    local = is_loopback(options.host)
    if not local and key is None:
        log(f"warning: {options.host} may be reached from other machines, and there is no key; set {KEY_VARIABLE}")
    check_address(options.host, options.port)
    if not _is_run(Path(what)):
        _check_positions(open_checkpoint(what, weights=False).config.context_length, options)
    with contextlib.ExitStack() as stack:
        catalog = open_catalog(what, stack, log)
        worker, max_len = make_worker(catalog, options, log)
        app = make_app(catalog, worker, Limits(max_len, options.max_body, options.stall_s), key=key, local_only=local)
        worker.start()
        try:
            run_server(
                app,
                worker,
                host=options.host,
                port=options.port,
                grace_s=options.grace_s,
                on_ready=lambda address: log(f"serving {catalog.name} at {address} (API: {address}/v1)"),
            )
        finally:
            worker.close(0)


def open_catalog(what: str, stack: contextlib.ExitStack, log: Callable[[str], None]) -> Catalog:
    """The models to serve.

    Args:
        what: see :func:`serve`.
        stack: closes what was opened.
        log: called with single lines.

    Raises:
        InputError: the model or the run can't be read.
    """
    path = Path(what)
    if _is_run(path):
        report.open_run(path)
        models = stack.enter_context(RunModels(path, no_progress, log))
        catalog = RunCatalog(models)
        models.prepare()
        return catalog
    with contextlib.suppress(InputError):  # without a folder that can be written, programs are compiled again
        stack.enter_context(persistent_compilation(Path(RunConfig.cache)))
    model = load_model(what)
    return OneModel(path.resolve().name if path.exists() else what, model)


def _is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and not (path / "config.json").exists()


def _check_positions(positions: int, options: Options) -> None:
    if options.max_len is not None and options.max_len > positions:
        raise InputError(
            f"expected --max-len of at most {positions}, the model's positions, got {options.max_len}; make it smaller"
        )


def make_worker(catalog: Catalog, options: Options, log: Callable[[str], None]) -> tuple[EngineWorker, int]:
    """A worker with an engine whose programs are compiled, and the most tokens of a prompt and its reply.

    Args:
        catalog: the models.
        options: sizes.
        log: called with single lines.

    Raises:
        InputError: the model has fewer positions than ``max_len``.
    """
    positions = catalog.config.context_length
    _check_positions(positions, options)
    max_len = min(positions, MOST_POSITIONS) if options.max_len is None else options.max_len
    engine = catalog.engine(options.slots, max_len)
    # A single model is loaded once: it would be in memory twice if its weights were kept beside the engine's.
    cache = WeightCache(catalog.express, 0 if catalog.run is None else int(options.weights_gib * 2**30))

    def load(key: Hashable) -> None:
        engine.unload()  # makes room for the weights that are expressed now
        params, owned = cache.get(key)
        engine.load(params, donate=owned)

    first = catalog.resolve("base" if catalog.run is not None else catalog.name)
    load(first)
    log("compiling the programs of the engine")
    engine.warm_up()
    return EngineWorker(engine, catalog.tokenizer, load, waiting=options.waiting, loaded=first), max_len
