"""The models of a run folder: their names, the individuals that they are made of, and their weights.

The experts and the journal suffice; checkpoints are not needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import jax
import jax.numpy as jnp

from cycleqd_jax import report
from cycleqd_jax.algorithms import aggregate
from cycleqd_jax.compilation import persistent_compilation
from cycleqd_jax.config import MeshConfig, RunConfig, load_config
from cycleqd_jax.files import make_folder
from cycleqd_jax.models.preflight import local_folder
from cycleqd_jax.operators import single_threaded_lapack
from cycleqd_jax.operators.merge import weighted_sum
from cycleqd_jax.report.read import load_selection
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.devices.groups import DeviceGroup, device_groups
from cycleqd_jax.runs.folder.migrations import read_inputs
from cycleqd_jax.runs.folder.replay import ancestors_of, rebuild, replay
from cycleqd_jax.runs.folder.run_folder import compare_inputs
from cycleqd_jax.runs.inputs.digests import folder_digest, tokenizer_digest
from cycleqd_jax.runs.inputs.examples import Examples
from cycleqd_jax.runs.inputs.models import ModelFolders, Models, model_folders
from cycleqd_jax.runs.results.selection import selection_facts
from cycleqd_jax.runs.workers.placement import Placement
from cycleqd_jax.search import Journal
from cycleqd_jax.types import Genome, InputError, Params, Progress, stack_trees

__all__ = ["Ingredients", "ModelChoice", "RunModels", "config_of", "find_ingredients", "recorded_folders"]

Kind = Literal["child", "elite", "selected", "aggregate", "best_elite", "soup"]


@dataclasses.dataclass(frozen=True)
class ModelChoice:
    """Names one model of a run folder.

    Attributes:
        kind: ``child`` (an individual), ``elite`` (that of a cell), or a model that the search ends with, as ``export.method``.
        id: the id of the individual (``child``).
        task: the task of the archive (``elite``).
        cell: bins on the axes of the archive (``elite``).
    """

    kind: Kind
    id: int | None = None
    task: str | None = None
    cell: tuple[int, ...] = ()

    @classmethod
    def elite(cls, text: str) -> ModelChoice:
        """The elite of a cell.

        Args:
            text: task and bins, such as ``mbpp/3,7``.

        Raises:
            InputError: the text has another form.
        """
        task, _, cell = text.rpartition("/")
        try:
            bins = tuple(int(part) for part in cell.split(","))
        except ValueError:
            bins = ()
        if not task or not bins:
            raise InputError(f"expected an elite TASK/CELL such as mbpp/3,7, got {text!r}; give a task and the bins of a cell")
        return cls("elite", task=task, cell=bins)

    @property
    def name(self) -> str:
        """The name of its folder below ``exports/``."""
        if self.kind == "child":
            return f"child-{self.id}"
        return "-".join(map(str, ("elite", self.task, *self.cell))) if self.kind == "elite" else self.kind


@dataclasses.dataclass(frozen=True)
class Ingredients:
    """The individuals that a model is merged from.

    Attributes:
        ids: the ids of the individuals.
        weights: the weight of each in the merge; None for a single individual.
        facts: facts for the model card, JSON-ready.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...] | None
    facts: Mapping[str, Any]


def config_of(folder: Path) -> RunConfig:
    """The config of a run folder.

    Raises:
        InputError: there is none, or it can't be read.
    """
    file = folder / "config.yaml"
    if not file.exists():
        raise InputError(f"expected the config of the run in {file}, got no such file; restore it from the run that wrote it")
    return load_config(file)


def find_ingredients(run: report.RunFolder, config: RunConfig, journal: Journal, choice: ModelChoice) -> Ingredients:
    """The individuals that a model is made of.

    Args:
        run: the run folder.
        config: the config of the run.
        journal: the journal of the run.
        choice: the model.

    Raises:
        InputError: the model is not there, or not yet.
    """
    if choice.kind == "child":
        assert choice.id is not None
        ancestors_of(journal, [choice.id])
        return _individual(journal, choice.id, "which was chosen by its id")
    if choice.kind == "elite":
        assert choice.task is not None
        identity = _elite_of(run, choice.task, choice.cell)
        cell = ", ".join(map(str, choice.cell))
        return _individual(journal, identity, f"the elite of cell {cell} in the archive of {choice.task}")
    if choice.kind in ("selected", "soup"):
        return _selected(run, config, journal, choice.kind)
    state = replay(config, journal).state
    if choice.kind == "best_elite":
        identity = int(state.leading(1)[2][0])
        return Ingredients((identity,), None, {"id": identity})
    return _aggregate(config, state)


def _individual(journal: Journal, identity: int, origin: str) -> Ingredients:
    return Ingredients((identity,), None, {"id": identity, "origin": origin, "train": journal[identity].scores})


def _elite_of(run: report.RunFolder, task: str, cell: tuple[int, ...]) -> int:
    if task not in run.archives:
        raise InputError(f"expected a task of the run ({', '.join(run.tasks)}), got {task!r} for an elite; give one of them")
    filled = {elite["cell"]: elite["id"] for elite in run.archives[task]}
    if cell not in filled:
        shown = " ".join(",".join(map(str, one)) for one in [*filled][:8])
        raise InputError(
            f"expected a filled cell of the archive of {task}, such as {shown or 'none yet'}, got {','.join(map(str, cell))} "
            "for an elite; give one of them"
        )
    return filled[cell]


def _selected(run: report.RunFolder, config: RunConfig, journal: Journal, kind: str) -> Ingredients:
    found = load_selection(run.path)
    if found is None:
        raise InputError(
            f"expected a finished selection in {run.path / 'tables' / 'selection.json'}, got none; run cycleqd evaluate first, "
            "or export --best-elite"
        )
    chosen = {"kind": "soup", "ids": found["soup"]} if kind == "soup" else found["chosen"]
    ids, about = tuple(chosen["ids"]), selection_facts(found)
    facts: dict[str, Any] = {"selection": about} if kind == "selected" else {}
    if chosen["kind"] == "aggregate":
        merge = _aggregate(config, replay(config, journal).state)
        return dataclasses.replace(merge, facts={**merge.facts, **facts})
    if len(ids) == 1:
        return Ingredients(ids, None, {"id": ids[0], **(facts or {"soup": {"problems": about["problems"]}})})
    return Ingredients(ids, (1 / len(ids),) * len(ids), {"ids": list(ids), **facts})


def _aggregate(config: RunConfig, state: Any) -> Ingredients:
    """The merge of equation 5."""
    if config.search.method != "cycleqd":
        raise InputError(
            f"expected search.method cycleqd, whose archives equation 5 merges, got {config.search.method}; use --best-elite "
            "or --selected"
        )
    _, beta, ids = aggregate(state.archives)  # its genomes are ids
    elites = tuple(ids.tolist())
    return Ingredients(elites, tuple(beta.tolist()), {"elites": list(elites), "beta": beta.tolist()})


def _on_these_devices(config: RunConfig, log: Callable[[str], None]) -> RunConfig:
    """The config with one group of the mesh's devices, or with one device where this machine has fewer."""
    _, fsdp, tensor = config.mesh.sizes
    mesh = MeshConfig(population=1, fsdp=fsdp, tensor=tensor)
    needed, here = math.prod(size for size in (fsdp, tensor) if size > 0), len(jax.devices())
    if needed > here:
        log(f"the run used groups of {needed} devices, and this machine has {here}: the model is built on one")
        mesh = MeshConfig()
    return dataclasses.replace(config, mesh=mesh)


class RunModels:
    """The models of a run folder, with weights that are loaded when they are first needed. The run may still go on.

    It is a context manager: compiled programs are kept in the run's cache while it is open.

    Attributes:
        config: the config of the run, with one group of the devices of this machine.
    """

    def __init__(self, folder: str | Path, progress: Progress, log: Callable[[str], None]) -> None:
        """Reads the config; the rest is read when it is needed.

        Args:
            folder: the run folder.
            progress: called by long stages.
            log: called with single lines.

        Raises:
            InputError: the folder has no config of a run.
        """
        self._progress = progress
        self._log = log
        self.config = _on_these_devices(dataclasses.replace(config_of(Path(folder)), output=str(folder)), log)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> RunModels:
        make_folder(self.config.cache)
        self._stack.enter_context(single_threaded_lapack())
        self._stack.enter_context(persistent_compilation(Path(self.config.cache)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @functools.cached_property
    def group(self) -> DeviceGroup:
        """The devices on which the models are built."""
        return device_groups(self.config, self._log)[0]

    @functools.cached_property
    def models(self) -> Models:
        """Base and experts, whose files are compared with the digests that the run recorded.

        Raises:
            InputError: a model is not there, or has changed.
        """
        shardings = None if self.group.single else self.group.weight_shardings
        return Models(self.config, recorded_folders(self.config), self._log, shardings)

    @functools.cached_property
    def _placement(self) -> Placement:
        context = Context(self.config, self.models, (), Examples(self.models, {}), [self.group], self._progress, self._log)
        return Placement(context)

    def prepare(self) -> None:
        """Loads the models and expresses one genome, so that later calls are quick.

        Raises:
            InputError: see :attr:`models`.
        """
        space = self._placement.ensure_space()
        self.express(space.expert(0))

    def journal(self) -> Journal:
        """The journal as it is now."""
        return Journal(self.config.folder / "history.jsonl", read_only=True)

    def genome(self, journal: Journal, ids: Sequence[int], weights: Sequence[float] | None) -> Genome:
        """The genome of a model, rebuilt from the experts and the journal.

        Args:
            journal: the journal of the run.
            ids: the ids of the individuals that it is made of (:class:`Ingredients`).
            weights: the weight of each in the merge; None for a single individual.

        Raises:
            InputError: an expert has changed, or a genome is not the recorded one.
        """
        genomes = rebuild(self._placement.ensure_space(), journal, self.config.expert_names, ids)
        if weights is None:
            return genomes[ids[0]]
        return weighted_sum(stack_trees([genomes[identity] for identity in ids]), jnp.asarray(weights, jnp.float32))

    def params(self, choice: ModelChoice | None = None) -> Params:
        """The weights of a model.

        Args:
            choice: the model; None is that of ``export.method``.

        Raises:
            InputError: the model is not there or not yet, or see :meth:`genome`.
        """
        journal = self.journal()
        choice = choice or ModelChoice(self.config.export.method)
        found = find_ingredients(report.open_run(self.config.folder), self.config, journal, choice)
        return self.express(self.genome(journal, found.ids, found.weights))

    def express(self, genome: Genome) -> Params:
        """The weights of a genome."""
        return self.group.express(self._placement.ensure_space().express)(genome)


def recorded_folders(config: RunConfig) -> ModelFolders:
    """Where the models of the run lie, checked against the digests that the run recorded.

    Raises:
        InputError: a model is not there, or has changed.
    """
    file = config.folder / "inputs.json"
    try:
        recorded = read_inputs(file)
    except OSError as error:
        raise InputError(
            f"expected the digests of the run's models in {file}, got {error}; restore it from the run that wrote it"
        ) from error
    if config.model.experts is not None:
        folders = model_folders(config, {})
    else:
        prefixes = {"base": "base-"} if config.model.base is None else {}
        prefixes |= {} if config.model.prepare is None else {"prepared_base": "prepared-"}
        prefixes |= {f"expert/{name}": f"expert-{name}-" for name in config.task_names}
        found = {} if config.model.base is None else {"base": local_folder(config.model.base, weights=True)}
        cache = Path(config.cache)
        found |= {name: _trained(cache, name, prefix, recorded.get(name)) for name, prefix in prefixes.items()}
        tokenizer = None if config.model.tokenizer is None else local_folder(config.model.tokenizer, weights=False)
        folders = ModelFolders(found, {}, cache, tokenizer)
    for name, folder in folders.search.items():
        if not folder.exists():
            raise InputError(
                f"expected {name} in {folder}, as {config.folder / 'config.yaml'} says, got nothing there; put it back, or run "
                "cycleqd with a config that has its new place"
            )
    digests = {name: folders.digest(name) for name in folders.search}
    if folders.tokenizer is not None:
        digests["tokenizer"] = tokenizer_digest(folders.tokenizer)
    compare_inputs(config.folder, digests)
    return folders


def _trained(cache: Path, name: str, prefix: str, digest: str | None) -> Path:
    """The folder of a model that the run trained, found in its cache by its digest."""
    models = cache / "models"
    candidates = [path for path in models.iterdir() if path.name.startswith(prefix)] if models.is_dir() else []
    for path in sorted(candidates, key=lambda one: one.stat().st_mtime, reverse=True):
        if folder_digest(path, cache) == digest:
            return path
    raise InputError(
        f"expected {name} with digest {digest}, which the run trained, got {len(candidates)} others in {models}; restore it, "
        "or train it again with cycleqd finetune and the config of the run"
    )
