"""The genome space of a run on its groups of devices, and the workers that score genomes there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cycleqd_jax.evaluation import LazyWorker, PopulationWorker, SerialWorker, StreamEvaluator, Worker, WorkerPool
from cycleqd_jax.genome import DenseSpace, ExpertSpace
from cycleqd_jax.genome.basis import Basis
from cycleqd_jax.runs.basis.decomposition import StoredBasis, experts_of, load_basis, write_facts
from cycleqd_jax.runs.coefficients import host_space
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.devices.groups import DeviceGroup, Space
from cycleqd_jax.runs.devices.mirror import mirrored
from cycleqd_jax.runs.faults import guarded
from cycleqd_jax.runs.folder.run_folder import claim_folder
from cycleqd_jax.runs.inputs.models import Models
from cycleqd_jax.sharding import to_host
from cycleqd_jax.types import Genome, ModelEvaluator, Params, Split

__all__ = ["Placement"]

PAPER_W_MAX = 0.3


class Placement:
    """Genome space, evaluators and workers of a run. What is computed or loaded is kept until the run is closed.

    In a distributed run every process has one; the calls that compute on the divided models are made in all of them.
    """

    def __init__(self, context: Context) -> None:
        """Does nothing yet.

        Args:
            context: the context of the run; its models are loaded when they are needed.
        """
        self._context = context
        self._config = context.config
        self._space: Space | None = None
        self._host_space: Space | None = None
        self._evaluator: ModelEvaluator | None = None
        self._basis: dict[str, Any] | None = None
        self._placed: dict[int, tuple[Space, ModelEvaluator]] = {}
        self.mirror = context.mirror
        if self.mirror is not None:
            self.mirror.register("placement", self)

    def ensure_evaluator(self) -> ModelEvaluator:
        """The evaluator of this run's models on the first group of devices, made once."""
        if self._evaluator is None:
            self._make_evaluator()
        assert self._evaluator is not None
        return self._evaluator

    @mirrored("placement")
    def _make_evaluator(self) -> None:
        models = self._context.models
        self._evaluator = self._context.evaluator(models.config, models.processor, self._context.groups[0])

    def ensure_space(self) -> Space:
        """The genome space on the first group of devices, made once.

        With several groups the host's copy is kept too: the others take theirs from it.
        """
        if self._space is None:
            if self.mirror is not None and not self._config.search.coefficients:
                self._decompose_alone()
            self._make_space()
        assert self._space is not None
        return self._space

    @mirrored("placement")
    def _make_space(self) -> None:
        host = self._build_space()
        groups = self._context.groups
        self._space = groups[0].place_space(host, self._context.models.config)
        self._host_space = host if len(groups) > 1 else None

    def genetic_space(self) -> Space:
        """The space in which genomes are made; that of a distributed run has shapes in the place of divided weights."""
        space = self.ensure_space()
        return space if self.mirror is None or isinstance(space, DenseSpace) else space.without_weights()

    def _decompose_alone(self) -> None:
        """Puts the basis of a distributed run into the cache, from which all processes read it.

        A basis that is not there is decomposed by process 0, with the weights in the memory of its host.
        """
        context = self._context
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            models = Models(self._config, context.models.folders, context.log)
            load_basis(experts_of(self._config, models), Path(self._config.cache), context.progress, context.log)

    def _build_space(self) -> Space:
        """The genome space with weights where they were loaded, and bases in the host's memory."""
        base, experts = self._context.models.base, self._context.models.experts
        options = self._config.genome
        if self._config.search.coefficients:
            return host_space(self._context, self._config.search.groups)
        strength = PAPER_W_MAX if options.strength is None else options.strength
        if options.space == "dense":
            return DenseSpace.from_experts(
                base, experts, mutation=options.mutation, strength=strength, rank=options.rank, method=options.method
            )
        return ExpertSpace.from_experts(
            base,
            experts,
            rank=options.rank,
            w_max=0.0 if options.mutation == "none" else strength,
            densify=options.densify,
            method=options.method,
            bases=self._load_basis(),
            factor_dtype=options.factor_dtype,
        )

    def _load_basis(self) -> dict[str, Basis]:
        """The experts' singular directions: from the cache, or decomposed now. The caller owns them."""
        context = self._context
        experts = experts_of(self._config, context.models)
        stored: StoredBasis = load_basis(experts, Path(self._config.cache), context.progress, context.log)
        self._basis = {"experts": list(self._config.expert_names), "store": str(stored.folder), **stored.facts}
        return stored.bases

    def build_basis(self) -> dict[str, Any]:
        """Builds the basis alone and writes ``tables/basis.json``; returns its content."""
        if self._basis is None:
            self._load_basis()
        claim_folder(self._config)
        self.write_basis()
        assert self._basis is not None
        return self._basis

    def write_basis(self) -> None:
        """Writes ``tables/basis.json``, where the basis has been loaded."""
        if self._basis is not None:
            write_facts(self._context.folder / "tables" / "basis.json", self._basis, self._context.log)

    def express(self, genome: Genome) -> Params:
        """The weights of a genome, on the first group of devices; the engine's weights are dropped to make room."""
        self.ensure_evaluator().unload()
        self.ensure_space()
        return self._express(genome)

    @mirrored("placement", makes=True)
    def _express(self, genome: Genome) -> Params:
        return self._context.groups[0].express(self.ensure_space().express)(genome)

    @mirrored("placement")
    def gathered(self, params: Params) -> Params:
        """The last weights that were made, in the memory of this host; in other processes nothing is kept of them."""
        if self.mirror is None:
            return params
        found = []
        for leaf in jax.tree.leaves(params):
            parts = [leaf] if leaf.ndim < 3 else (leaf[i] for i in range(len(leaf)))  # of a stack one layer at a time
            hosts = [host for part in parts if (host := to_host(part)) is not None and self.mirror.leads]
            found.append(None if not hosts else hosts[0] if leaf.ndim < 3 else np.stack(hosts))
        return jax.tree.unflatten(jax.tree.structure(params), found)

    def expert_genomes(self) -> list[Genome]:
        """The genomes of the experts: those of the tasks, in their order, then others."""
        space = self.genetic_space()
        return [space.expert(k) for k in range(len(self._config.expert_names))]

    @property
    def basis_checksum(self) -> str | None:
        """The checksum of the experts' singular directions; None where they have not been loaded, or are not needed."""
        return None if self._basis is None else self._basis["checksum"]

    def workers(self, split: Split, tasks: Sequence[str] | None = None) -> StreamEvaluator:
        """Workers on all groups of devices that score genomes on a split of all tasks, or of some."""
        workers = [self.worker(split, i, tasks) for i in range(len(self._context.groups))]
        return WorkerPool(workers, grace=self._context.config.search.grace, log=self._context.log)

    def worker(self, split: Split, i: int = 0, tasks: Sequence[str] | None = None) -> Worker:
        """A worker on a group of devices, which gets its space and its engine with its first child.

        Args:
            split: the problems that it scores genomes on.
            i: the number of the group.
            tasks: the names of the tasks to score; None is all.
        """
        population, group = self._config.engine.population, self._context.groups[i]

        def make() -> Worker:
            space, evaluator = self._place(i, group)
            evaluator = evaluator if tasks is None else evaluator.only(tasks)
            express = group.express(space.express) if self.mirror is None else self._express
            worker: Worker = SerialWorker(express, evaluator, split)
            if population > 1 and not isinstance(space, DenseSpace):
                worker = PopulationWorker(group.express(space.express_mixed), evaluator, population, split)
            return guarded(worker, evaluator, self._config.search, split, self._context.log)

        return LazyWorker(population, make)

    def _place(self, i: int, group: DeviceGroup) -> tuple[Space, ModelEvaluator]:
        """Space and evaluator of a group of devices, made once."""
        if i == 0:
            return self.ensure_space(), self.ensure_evaluator()
        if i not in self._placed:
            models = self._context.models
            assert self._host_space is not None
            space = group.place_space(self._host_space, models.config)
            self._placed[i] = space, self._context.evaluator(models.config, models.processor, group)
        return self._placed[i]
