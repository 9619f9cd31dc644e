"""The search of a run, and the models that it finds."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from cycleqd_jax import search
from cycleqd_jax.algorithms import CycleQDState, aggregate
from cycleqd_jax.evaluation import Evaluation, StreamEvaluator
from cycleqd_jax.genome import CoefficientGenome, DenseSpace, ExpertGenome
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.extension.origin import take_origin
from cycleqd_jax.runs.folder.replay import rebuild
from cycleqd_jax.runs.folder.run_folder import check_inputs, claim_folder, compare_inputs
from cycleqd_jax.runs.inputs.digests import tokenizer_digest
from cycleqd_jax.runs.inputs.resolve import budget_of, digest_problems, input_digests, whole_expert
from cycleqd_jax.runs.logs.loggers import log_search
from cycleqd_jax.runs.results.rows import FoundModel
from cycleqd_jax.runs.results.selection import Candidate, Key, Selection, select
from cycleqd_jax.runs.searchers import make_searcher, racing_of, write_grid
from cycleqd_jax.runs.training.gradient import GradientMerge
from cycleqd_jax.runs.usage import evaluation_usage, write_selection, write_usage
from cycleqd_jax.runs.workers.placement import Placement
from cycleqd_jax.types import Adapter, Genome, InputError, Searcher, SearchState, Split, stack_trees

__all__ = ["Evolution", "Merged", "Remote", "mixing_of"]


@dataclasses.dataclass(frozen=True)
class Merged:
    """A model that a search found.

    Attributes:
        genome: the genome of the model.
        facts: JSON-ready; of the aggregate ``elites`` (ids) and their weights ``beta``, of an individual its ``id``, of a soup
            its ``ids``; and ``mixing``, the weights of the experts' task vectors (None in the dense space; the mean over the
            groups of layers where there are several). A selected model also has ``selection``: see :class:`Selection`. A soup
            of one individual has ``soup``: the number of validation ``problems``.
        key: identifies the weights: equal for models with equal weights.
    """

    genome: Genome
    facts: Mapping[str, Any]
    key: Key


@runtime_checkable
class Remote(Protocol):
    """Evaluates individuals in other processes; see :class:`~cycleqd_jax.runs.workers.remote.RemoteWorkers`."""

    def evaluator(self, split: Split, basis: str | None) -> StreamEvaluator:
        """Evaluates genomes on the problems of a split, with a basis of this checksum."""
        ...


class Evolution:
    """The search of a run. What is computed or loaded is kept until the run is closed.

    Attributes:
        placement: genome space, evaluators and workers of the run.
    """

    def __init__(self, context: Context, remote: Remote | None = None) -> None:
        """Does nothing yet.

        Args:
            context: the context of the run; its models are loaded when they are needed.
            remote: evaluates individuals elsewhere; None evaluates them on the devices of this process.
        """
        self._context = context
        self._config = context.config
        self._remote = remote
        self._state: SearchState | None = None
        self._selection: Selection | None = None
        self.placement = Placement(context)

    # Search

    def searcher(self) -> Searcher:
        """The algorithm of the config."""
        return make_searcher(self._config, self.placement.genetic_space())

    def ensure_evolved(self) -> SearchState:
        """Evolves to the last generation, once, from wherever the run folder stands.

        Returns:
            The state after the last generation.

        Raises:
            InputError: the folder belongs to another config, other models or other data; or an expert can't be evaluated.
            FailuresError: too many children in a row, or an expert, could not be evaluated because of a sandbox, the memory or
                the deadline; the same call continues.
        """
        if self._state is None:
            self._state = self._evolve()
        return self._state

    def _evolve(self) -> SearchState:
        context, config = self._context, self._config
        if self._remote is None:
            self.placement.ensure_evaluator()  # the models are loaded and checked before anything is written
        experts = jax.jit(stack_trees)(self.placement.expert_genomes())  # one program for all leaves
        self._check_population(experts)
        if config.gradient is not None:  # what its row lacks is found before the search
            GradientMerge(context, config.gradient).check()
        claim_folder(config)
        inputs = input_digests(context.models.folders, context.tasks)
        carried = self._carried(inputs)
        check_inputs(context.folder, inputs, context.groups[0].describe(config.engine.slots), context.log)
        self.placement.write_basis()
        write_usage(context, self.placement.ensure_space())
        checkpoints = search.Checkpoints(
            context.folder / "checkpoints", every=config.checkpoint.every, keep=config.checkpoint.keep
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(checkpoints))
            journal = search.Journal(context.folder / "history.jsonl")
            if context.shared is not None:
                compare_inputs(context.shared, inputs)  # the experts may have been trained since the run was opened
                self._take_experts(journal, context.shared)
            progress = stack.enter_context(log_search(config, journal, context.progress, context.log))
            options: dict[str, Any] = {
                "tasks": config.task_names,
                "names": config.expert_names,
                "key": jax.random.key(config.seed),
                "journal": journal,
                "checkpoints": checkpoints,
                "transcripts": self._transcripts(context.folder),
                "budget": budget_of(config, context.tasks),
                "max_failures": config.search.max_failures,
                "on_start": lambda state: write_grid(config, journal),
                "progress": progress,
                "log": context.log,
            }
            workers, generations = self._workers("train"), config.search.generations
            if config.search.steady:
                return search.evolve_steadily(self.searcher(), experts, workers, children=generations, **options)
            options |= {"batch_size": config.search.batch_size, "carried": carried, "racing": racing_of(config)}
            return search.evolve(self.searcher(), experts, workers, generations=generations, **options)

    def _workers(self, split: Split, tasks: Sequence[str] | None = None) -> StreamEvaluator:
        """Workers that score genomes on a split of all tasks, or of some.

        They use all groups of devices, or a cluster. Those for some tasks use this process.
        """
        if self._remote is not None and tasks is None:
            self.placement.ensure_space()
            return self._remote.evaluator(split, self.placement.basis_checksum)
        return self.placement.workers(split, tasks)

    def _carried(self, inputs: Mapping[str, str]) -> search.Carried | None:
        """The individuals of another run with which this one begins."""
        origin = take_origin(self._config, self._context.folder, inputs, self._context.log)
        if origin is None:
            return None
        workers = self._workers("train", origin.new_tasks) if origin.new_tasks else None
        return origin.carried(self.placement.genetic_space(), workers)

    def _transcripts(self, folder: Path) -> search.Transcripts:
        """The token ids of all replies of a run folder's search."""
        folders = self._context.models.folders
        tokenizer = tokenizer_digest(folders.tokenizer or folders.original)
        return search.Transcripts(folder / "replies", tokenizer, drafts=self._config.engine.drafts != "none")

    def _take_experts(self, journal: search.Journal, shared: Path) -> None:
        """Records the experts, which have the first ids, as the journal of another run's folder has them."""
        other = search.Journal(shared / "history.jsonl", read_only=True)
        own, theirs = map(self._transcripts, (self._context.folder, shared))
        for k in range(len(self._config.expert_names)):
            expert = other.get(k)
            if expert is not None and journal.get(k) is None:
                own.write(k, theirs.read(k) or {})
                genome = self.placement.genetic_space().expert(k)  # that run may search another genome space
                journal.append(dataclasses.replace(expert, digest=search.tree_digest(genome)))

    def _check_population(self, genomes: Genome) -> None:
        """Refuses to decode individuals over one base where the experts do not share one."""
        population, space = self._config.engine.population, self.placement.ensure_space()
        if population == 1:
            return
        for name, expert in zip(self._config.expert_names, self._context.models.experts, strict=True):
            if not isinstance(expert, Adapter):
                raise whole_expert(population, name)
        assert not isinstance(space, DenseSpace)
        jax.eval_shape(space.express_mixed, genomes)

    # What it found

    def evaluate_individual(self, identity: int, split: Split) -> Evaluation:
        """Scores an individual of the journal, rebuilt from the experts, on the problems of a split."""
        space, journal = self.placement.genetic_space(), search.Journal(self._context.folder / "history.jsonl", read_only=True)
        genome = rebuild(space, journal, self._config.expert_names, [identity])[identity]
        found: list[Evaluation] = []
        self._workers(split)([[genome]], lambda _, evaluations: found.extend(evaluations))
        return found[0]

    def final(self) -> Merged:
        """The model of ``export.method``."""
        return self.model(self._config.export.method)

    def model(self, name: FoundModel) -> Merged:
        """A model that the search ends with; see the method of its name."""
        models = {"aggregate": self.aggregate, "best_elite": self.best_elite, "soup": self.soup, "selected": self.selected}
        return models[name]()

    @property
    def is_cycleqd(self) -> bool:
        """Whether the search has the archives of Algorithm 1."""
        return self._config.search.method == "cycleqd"

    def aggregate(self) -> Merged:
        """The elites of all archives merged (equation 5); evolves first where that has not been done.

        Raises:
            InputError: the method has no archive of every task.
        """
        method = self._config.search.method
        if method != "cycleqd":
            raise InputError(
                f"expected search.method cycleqd, whose archives equation 5 merges, got {method}; use the best individual on "
                "average, which `cycleqd export` writes"
            )
        state = self.ensure_evolved()
        assert isinstance(state, CycleQDState)
        merged, beta, ids = aggregate(state.archives)
        facts = {"elites": ids.tolist(), "beta": beta.tolist(), "mixing": mixing_of(merged)}
        return Merged(merged, facts, ("aggregate", tuple(ids.tolist())))

    def best_elite(self) -> Merged:
        """The individual with the highest average on the train problems, among all in the state of the search."""
        return self._merged(self._leading(1)[0])

    def selected(self) -> Merged:
        """The best of the candidates on the validation problems; see :meth:`ensure_selected`."""
        selection = self.ensure_selected()
        found = self._merged(selection.chosen)
        return dataclasses.replace(found, facts={**found.facts, "selection": selection.facts})

    def soup(self) -> Merged:
        """The greedy soup of the leading individuals; where no other was accepted, the best of them on validation problems."""
        selection = self.ensure_selected()
        found = self._merged(selection.soup)
        if "ids" in found.facts:
            return found
        return dataclasses.replace(found, facts={**found.facts, "soup": {"problems": selection.facts["problems"]}})

    def _merged(self, candidate: Candidate) -> Merged:
        if candidate.kind == "aggregate":
            return self.aggregate()
        found = {"id": candidate.ids[0]} if candidate.kind == "elite" else {"ids": list(candidate.ids)}
        return Merged(candidate.genome, {**found, "mixing": mixing_of(candidate.genome)}, candidate.key)

    def _leading(self, count: int) -> list[Candidate]:
        """The individuals with the highest averages on the train problems; evolves first where that has not been done."""
        genomes, _, ids = self.ensure_evolved().leading(count)
        return [
            Candidate("elite", (identity,), jax.tree.map(lambda leaf, j=j: leaf[j], genomes))
            for j, identity in enumerate(ids.tolist())
        ]

    def ensure_selected(self) -> Selection:
        """Chooses the final model on the validation problems, once; evolves first where that has not been done.

        The candidates are the individuals with the highest averages on the train problems and their soup, of CycleQD also the
        aggregate of its archives.

        Raises:
            InputError: see :func:`~cycleqd_jax.runs.results.selection.select`.
            InfraError: a sandbox is broken; the same call continues.
        """
        if self._selection is None:
            context, candidates = self._context, self._leading(self._config.export.elites)
            if self.is_cycleqd:
                found = self.aggregate()
                candidates = [Candidate("aggregate", tuple(found.facts["elites"]), found.genome), *candidates]
            self._selection = select(
                candidates,
                self._workers("validation"),
                context.folder / "tables" / "selection.json",
                problems={task.name: digest_problems(task.problems("validation")) for task in context.tasks},
                progress=context.progress,
                log=context.log,
                on_evaluated=self._record_selection,
            )
        return self._selection

    def _record_selection(self, evaluated: Mapping[str, Evaluation]) -> None:
        seconds = {name: evaluation_usage(one)["seconds"] for name, one in evaluated.items()}
        write_selection(self._context.folder, seconds, self._context.log)


def mixing_of(genome: Genome) -> list[float] | None:
    """The weights of the experts' task vectors in a genome; see :class:`Merged`."""
    if isinstance(genome, CoefficientGenome):
        return jnp.mean(genome.coefficients, axis=0).tolist()
    return genome.mixing.tolist() if isinstance(genome, ExpertGenome) else None
