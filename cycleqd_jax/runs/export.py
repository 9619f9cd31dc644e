"""Models that are rebuilt from a run folder: the experts and the journal suffice, checkpoints are not needed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from cycleqd_jax import report
from cycleqd_jax.algorithms import aggregate
from cycleqd_jax.compilation import persistent_compilation
from cycleqd_jax.config import MeshConfig, RunConfig, load_config
from cycleqd_jax.files import make_folder, write_json
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.preflight import local_folder
from cycleqd_jax.operators import single_threaded_lapack
from cycleqd_jax.operators.merge import weighted_sum
from cycleqd_jax.report.read import load_selection
from cycleqd_jax.runs.card import model_card
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.devices import device_groups
from cycleqd_jax.runs.evolution import Evolution, mixing_of
from cycleqd_jax.runs.examples import Examples
from cycleqd_jax.runs.folder import compare_inputs, folder_digest, tokenizer_digest
from cycleqd_jax.runs.models import ModelFolders, Models, model_folders
from cycleqd_jax.runs.replay import ancestors_of, rebuild, replay
from cycleqd_jax.runs.selection import selection_facts
from cycleqd_jax.search import Journal
from cycleqd_jax.types import Genome, InputError, Params, Progress, stack_trees

__all__ = ["RebuiltModel", "Wanted", "export_from_folder", "rebuilt_model", "record_export", "recorded_folders"]

Kind = Literal["child", "elite", "selected", "aggregate", "best_elite", "soup"]


@dataclasses.dataclass(frozen=True)
class Wanted:
    """The model that is wanted of a run folder.

    Attributes:
        kind: what it is.
        id: of the individual (``child``).
        task: of the archive (``elite``).
        cell: bins on the axes of the archive (``elite``).
    """

    kind: Kind
    id: int | None = None
    task: str | None = None
    cell: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The name of its folder below ``exports/``."""
        if self.kind == "child":
            return f"child-{self.id}"
        return "-".join(map(str, ("elite", self.task, *self.cell))) if self.kind == "elite" else self.kind


@dataclasses.dataclass(frozen=True)
class RebuiltModel:
    """A model of a run, in memory.

    Attributes:
        config: the config of the run, for the devices that are here.
        models: base and experts; they know the architecture and the tokenizer.
        params: the weights.
        facts: of the model, for its card.
        evaluated: individuals in the journal.
    """

    config: RunConfig
    models: Models
    params: Params
    facts: Mapping[str, Any]
    evaluated: int


@dataclasses.dataclass(frozen=True)
class _Found:
    """What a wanted model is made of: the individuals, the weight of each, and the facts for the card."""

    ids: tuple[int, ...]
    weights: Any
    facts: Mapping[str, Any]


def export_from_folder(
    folder: str | Path,
    wanted: Wanted | None = None,
    output: str | Path | None = None,
    *,
    command: Sequence[str] = (),
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Rebuilds a model from the experts and the journal of a run, and writes a Hugging Face folder with a model card.

    Every genome on the way is checked against the digest in the journal. The run may still go on.

    Args:
        folder: the run folder.
        wanted: the model; None is that of ``export.method``.
        output: the folder to write; by default below ``exports/`` in the run folder.
        command: arguments of ``cycleqd``, for the model card.
        progress: called by long stages; by default a progress bar.
        log: called with single lines; by default they are printed above the progress bar.

    Returns:
        The folder.

    Raises:
        InputError: the folder is no run folder, the model is not there yet, an expert has changed, or the genome is not the
            recorded one.
    """
    folder = Path(folder)
    wanted = wanted or Wanted(_config_of(folder).export.method)
    target = folder / "exports" / wanted.name if output is None else Path(output)
    hf.check_target(target)
    found = rebuilt_model(folder, wanted, progress=progress, log=log)
    models = found.models
    has_results = (folder / "tables" / "results.json").exists()
    table = report.results_table(folder) if has_results else None
    library = models.family.library(models.config)
    card = model_card(found.config, models.folders.search, found.facts, table, command, found.evaluated, library)
    models.family.save(target, models.config, found.params, models.processor, card)
    record_export(folder, target, found.facts)
    return target


def rebuilt_model(
    folder: str | Path,
    wanted: Wanted | None = None,
    *,
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
) -> RebuiltModel:
    """Rebuilds a model from the experts and the journal of a run, in memory; writes nothing into the run folder.

    Args:
        folder: the run folder.
        wanted: see :func:`export_from_folder`.
        progress: see :func:`export_from_folder`.
        log: see :func:`export_from_folder`.

    Raises:
        InputError: see :func:`export_from_folder`.
    """
    folder = Path(folder)
    run = report.open_run(folder)
    config = dataclasses.replace(_config_of(folder), output=str(folder))
    journal = Journal(folder / "history.jsonl", read_only=True)
    found = _find(run, config, journal, wanted or Wanted(config.export.method))
    unchecked = [identity for identity in ancestors_of(journal, found.ids) if journal[identity].digest is None]
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(report.ProgressBar()) if progress is None or log is None else None
        progress, log = progress or bar, log or (bar.log if bar is not None else None)
        assert progress is not None
        assert log is not None
        make_folder(config.cache)
        stack.enter_context(single_threaded_lapack())
        stack.enter_context(persistent_compilation(Path(config.cache)))
        config = _on_these_devices(config, log)
        groups = device_groups(config, log)
        models = Models(config, recorded_folders(config), log, None if groups[0].single else groups[0].weight_shardings)
        evolution = Evolution(Context(config, models, (), Examples(models, {}), groups, progress, log))
        space = evolution.ensure_space()
        genome = _merged(rebuild(space, journal, config.expert_names, found.ids), found)
        if unchecked:
            log(f"warning: {len(unchecked)} of the genomes could not be checked: the journal has no digests of them")
        params = groups[0].express(space.express)(genome)
        return RebuiltModel(config, models, params, {**found.facts, "mixing": mixing_of(genome)}, len(journal))


def record_export(folder: Path, target: Path, facts: Mapping[str, Any]) -> None:
    """Records the content of a model that lies in the run folder, for ``cycleqd verify``.

    Args:
        folder: the run folder.
        target: the folder of the model; nothing is recorded of one that lies elsewhere.
        facts: of the model.
    """
    place, home = target.resolve(), folder.resolve()
    if place.is_relative_to(home):
        name = place.relative_to(home).as_posix()
        record = {"folder": name, "digest": folder_digest(target), "model": dict(facts)}
        write_json(folder / "exports" / f"{name.removeprefix('exports/').replace('/', '-')}.json", record)


def _config_of(folder: Path) -> RunConfig:
    file = folder / "config.yaml"
    if not file.exists():
        raise InputError(f"expected the config of the run in {file}, got no such file; restore it from the run that wrote it")
    return load_config(file)


def _find(run: report.RunFolder, config: RunConfig, journal: Journal, wanted: Wanted) -> _Found:
    """The individuals that a model is made of."""
    if wanted.kind == "child":
        assert wanted.id is not None
        ancestors_of(journal, [wanted.id])
        return _individual(journal, wanted.id, "which was chosen by its id")
    if wanted.kind == "elite":
        assert wanted.task is not None
        identity = _elite_of(run, wanted.task, wanted.cell)
        cell = ", ".join(map(str, wanted.cell))
        return _individual(journal, identity, f"the elite of cell {cell} in the archive of {wanted.task}")
    if wanted.kind in ("selected", "soup"):
        return _selected(run, config, journal, wanted.kind)
    state = replay(config, journal).state
    if wanted.kind == "best_elite":
        identity = int(state.leading(1)[2][0])
        return _Found((identity,), None, {"id": identity})
    return _aggregate(config, state)


def _individual(journal: Journal, identity: int, origin: str) -> _Found:
    return _Found((identity,), None, {"id": identity, "origin": origin, "train": journal[identity].scores})


def _elite_of(run: report.RunFolder, task: str, cell: tuple[int, ...]) -> int:
    if task not in run.archives:
        raise InputError(f"expected a task of the run ({', '.join(run.tasks)}), got {task!r} in --elite; give one of them")
    filled = {elite["cell"]: elite["id"] for elite in run.archives[task]}
    if cell not in filled:
        shown = " ".join(",".join(map(str, one)) for one in [*filled][:8])
        raise InputError(
            f"expected a filled cell of the archive of {task}, such as {shown or 'none yet'}, got {','.join(map(str, cell))} "
            "in --elite; give one of them"
        )
    return filled[cell]


def _selected(run: report.RunFolder, config: RunConfig, journal: Journal, kind: str) -> _Found:
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
        return _Found(ids, None, {"id": ids[0], **(facts or {"soup": {"problems": about["problems"]}})})
    return _Found(ids, jnp.full(len(ids), 1 / len(ids), jnp.float32), {"ids": list(ids), **facts})


def _aggregate(config: RunConfig, state: Any) -> _Found:
    """The merge of equation 5."""
    if config.search.method != "cycleqd":
        raise InputError(
            f"expected search.method cycleqd, whose archives equation 5 merges, got {config.search.method}; use --best-elite "
            "or --selected"
        )
    _, beta, ids = aggregate(state.archives)  # its genomes are ids
    elites = tuple(ids.tolist())
    return _Found(elites, beta, {"elites": list(elites), "beta": beta.tolist()})


def _merged(genomes: Mapping[int, Genome], found: _Found) -> Genome:
    if found.weights is None:
        return genomes[found.ids[0]]
    return weighted_sum(stack_trees([genomes[identity] for identity in found.ids]), found.weights)


def _on_these_devices(config: RunConfig, log: Callable[[str], None]) -> RunConfig:
    """The config with one group of the mesh's devices, or with one device where this machine has fewer."""
    _, fsdp, tensor = config.mesh.sizes
    mesh = MeshConfig(population=1, fsdp=fsdp, tensor=tensor)
    needed, here = math.prod(size for size in (fsdp, tensor) if size > 0), len(jax.devices())
    if needed > here:
        log(f"the run used groups of {needed} devices, and this machine has {here}: the model is built on one")
        mesh = MeshConfig()
    return dataclasses.replace(config, mesh=mesh)


def recorded_folders(config: RunConfig) -> ModelFolders:
    """Where the models of the run lie, checked against the digests that the run recorded.

    Raises:
        InputError: a model is not there, or has changed.
    """
    file = config.folder / "inputs.json"
    try:
        recorded = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
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
