"""The workers of a run on a Ray cluster: what each of them loads, and what the run records of them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import cycleqd_jax
from cycleqd_jax.compilation import device_kind
from cycleqd_jax.config import RayConfig, RunConfig
from cycleqd_jax.evaluation import StreamEvaluator, Worker
from cycleqd_jax.evaluation.ray import Hosted, Patience, RayCluster, RayPool, WorkerRecord
from cycleqd_jax.files import write_json
from cycleqd_jax.report.read import load_workers
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.folder.run_folder import versions
from cycleqd_jax.runs.inputs.resolve import input_digests
from cycleqd_jax.runs.opening import open_context
from cycleqd_jax.runs.workers.placement import Placement
from cycleqd_jax.schema import SCHEMA
from cycleqd_jax.types import SPLITS, InputError, Split, no_progress

__all__ = ["RemoteWorkers", "WorkerProgram", "connect", "end_workers", "software"]

FILE = "workers.json"
"""The file in a run folder with the records of the workers."""


@dataclasses.dataclass(frozen=True)
class WorkerProgram:
    """Loads the models of a run in the process of a worker.

    Attributes:
        config: the config of the run.
        folder: the working directory of the run's process, from which the paths of the config are read.
        versions: :func:`software` of the run's process; that of the worker must be equal.
        inputs: digests of the run's models and problems. The worker reads its own, which must have the same digests.
        basis: the checksum of the experts' singular directions; None where the search needs none.
    """

    config: RunConfig
    folder: str
    versions: Mapping[str, str]
    inputs: Mapping[str, str]
    basis: str | None

    def start(self, log: Callable[[str], None]) -> Hosted:
        """See :class:`~cycleqd_jax.evaluation.ray.Program`."""
        here = platform.node()
        _check_equal("version of", self.versions, software(), f"the worker on {here}; install the versions of the run")
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise InputError(
                f"expected the folder {self.folder} of the run on every node, got {error.strerror} in the worker on {here}; "
                "share the file system, and start the run in a folder that all nodes have"
            ) from error
        stack = contextlib.ExitStack()

        def check(inputs: Mapping[str, str]) -> None:
            _check_equal("digest of", self.inputs, inputs, f"the worker on {here}; give all nodes the same files")

        alone = dataclasses.replace(self.config, ray=RayConfig(), mesh=dataclasses.replace(self.config.mesh, population=1))
        context = open_context(alone, stack, progress=no_progress, log=log, check=check, read_only=True).context
        placement = Placement(context)
        workers: dict[Split, Worker] = {split: placement.worker(split) for split in SPLITS}
        placement.ensure_space()
        found = {"basis": placement.basis_checksum}
        _check_equal("checksum of", {"basis": self.basis}, found, f"the worker on {here}; give all nodes the same cache")
        placement.ensure_evaluator()
        return Hosted(workers, {"device": device_kind()}, stack)


def _check_equal(what: str, expected: Mapping[str, Any], found: Mapping[str, Any], where: str) -> None:
    for name in expected:
        if found.get(name) != expected[name]:
            raise InputError(f"expected {what} {name} {expected[name]}, as in the run, got {found.get(name)} in {where}")


def software() -> dict[str, str]:
    """The versions of a run, and 16 hexadecimal digits of the sources of this package, which change without a new version."""
    root, digest = Path(cycleqd_jax.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return {**versions(), "sources of cycleqd_jax": digest.hexdigest()[:16]}


class RemoteWorkers:
    """The workers of a run on the cluster of ``ray.address``. They start with the first evaluation."""

    def __init__(self, context: Context, cluster: RayCluster) -> None:
        """Starts nothing yet.

        Args:
            context: the context of the run.
            cluster: the result of :func:`connect`.

        Raises:
            InputError: ``workers.json`` is damaged.
        """
        self._context = context
        self._cluster = cluster
        self._earlier = load_workers(context.folder)
        self._pool: RayPool | None = None

    def evaluator(self, split: Split, basis: str | None) -> StreamEvaluator:
        """Evaluates genomes on the problems of a split.

        Args:
            split: the problems.
            basis: the checksum of the basis; None where the search needs none.
        """
        config, context = self._context.config, self._context
        if self._pool is None:
            options, size = config.ray, config.engine.population
            most = min(options.workers, config.search.together(size) or options.workers)
            if most < options.workers:
                context.log(
                    f"{most} instead of {options.workers} workers are used: search.batch_size is {config.search.batch_size}; "
                    "make it larger, or ray.workers smaller"
                )
            inputs = input_digests(context.models.folders, context.tasks)
            self._pool = RayPool(
                self._cluster,
                WorkerProgram(config, os.getcwd(), software(), inputs, basis),
                size=size,
                workers=most,
                patience=Patience(options.deadline, options.start, options.deaths),
                device=self._known_device(),
                grace=config.search.grace,
                record=self._record,
                log=context.log,
            )
        return self._pool.evaluator(split, quarantine=split == "train")

    def close(self) -> None:
        """Ends the workers."""
        if self._pool is None:
            self._cluster.close()
        else:
            self._pool.close()

    def _known_device(self) -> str | None:
        """The kind of devices with which the run has evaluated before."""
        kinds = [one["device"] for one in self._earlier if one["evaluated"]]
        if kinds:
            return kinds[-1]
        # Otherwise a run that has begun was evaluated by this process. Of a new run, the first worker decides.
        journal = self._context.folder / "history.jsonl"
        return device_kind() if journal.exists() and journal.stat().st_size > 0 else None

    def _record(self, records: Sequence[WorkerRecord]) -> None:
        now = [{"start": self._start, **record.to_json()} for record in records]
        if self._context.folder.exists():
            write_json(self._context.folder / FILE, {"schema": SCHEMA, "workers": [*self._earlier, *now]})

    @property
    def _start(self) -> int:
        """The number of this start of the run, from 0."""
        return max((one["start"] for one in self._earlier), default=-1) + 1


def end_workers(folder: Path) -> None:
    """Records that the workers of earlier starts have ended; a start that was killed could not.

    Args:
        folder: the run folder, when a run is opened.

    Raises:
        InputError: ``workers.json`` is damaged.
        OSError: the disk refuses.
    """
    found = load_workers(folder)
    ended = [one if one["state"] in ("ended", "refused") else {**one, "state": "ended"} for one in found]
    if ended != found:
        write_json(folder / FILE, {"schema": SCHEMA, "workers": ended})


def connect(config: RunConfig) -> RayCluster:
    """Connects to the cluster of ``ray.address``.

    Raises:
        InputError: Ray is not installed, or the cluster can't be reached.
    """
    options = config.ray
    assert options.address is not None
    gpus = options.gpus
    if gpus is None:
        gpus = 0.0 if jax.default_backend() == "cpu" else float(config.mesh.fsdp * config.mesh.tensor)
    return RayCluster(options.address, cpus=options.cpus, gpus=gpus)
