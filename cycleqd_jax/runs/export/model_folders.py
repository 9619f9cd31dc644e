"""Models that are rebuilt from a run folder and written as model folders."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax import report
from cycleqd_jax.files import check_writable, load_json, write_json
from cycleqd_jax.models.files import hf
from cycleqd_jax.runs.evolution import mixing_of
from cycleqd_jax.runs.export.card import model_card
from cycleqd_jax.runs.folder.models import ModelChoice, RunModels, find_ingredients
from cycleqd_jax.runs.folder.replay import ancestors_of
from cycleqd_jax.runs.inputs.digests import folder_digest
from cycleqd_jax.types import InputError, Progress

__all__ = ["export_from_folder", "record_export"]


def export_from_folder(
    folder: str | Path,
    choice: ModelChoice | None = None,
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
        choice: the model; None is that of ``export.method``.
        output: the folder to write; by default below ``exports/`` in the run folder.
        command: arguments of ``cycleqd``, for the model card.
        progress: called by long stages; by default a progress bar.
        log: called with single lines; by default they are printed above the progress bar.

    Returns:
        The folder.

    Raises:
        InputError: the folder is not a run folder, the model is not there yet, an expert has changed, or the genome is not the
            recorded one; or the output can't be written, or is a model of the run.
    """
    folder = Path(folder)
    run = report.open_run(folder)
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(report.ProgressBar()) if progress is None or log is None else None
        progress, log = progress or bar, log or (bar.log if bar is not None else None)
        assert progress is not None
        assert log is not None
        models = RunModels(folder, progress, log)
        choice = choice or ModelChoice(models.config.export.method)
        target = folder / "exports" / choice.name if output is None else Path(output)
        place = hf.check_target(target)
        check_writable(place.parent, "choose another --output")
        journal = models.journal()
        found = find_ingredients(run, models.config, journal, choice)
        unchecked = [identity for identity in ancestors_of(journal, found.ids) if journal[identity].digest is None]
        stack.enter_context(models)
        for name, source in models.models.folders.search.items():
            if os.path.realpath(source) == str(place):
                raise InputError(
                    f"expected a folder that is no model of the run, got {name} in {target}; choose another --output"
                )
        genome = models.genome(journal, found.ids, found.weights)
        if unchecked:
            log(f"warning: {len(unchecked)} of the genomes could not be checked: the journal has no digests of them")
        facts = {**found.facts, "mixing": mixing_of(genome)}
        has_results = (folder / "tables" / "results.json").exists()
        table = report.results_table(folder) if has_results else None
        loaded = models.models
        library = loaded.family.library(loaded.config)
        card = model_card(models.config, loaded.folders.search, facts, table, command, len(journal), library)
        loaded.family.save(target, loaded.config, models.express(genome), loaded.processor, card)
    record_export(folder, target, facts, len(journal))
    return target


def record_export(folder: Path, target: Path, facts: Mapping[str, Any], individuals: int) -> None:
    """Records the content of a model that lies in the run folder, for ``cycleqd verify``.

    Args:
        folder: the run folder.
        target: the folder of the model; nothing is recorded of one that lies elsewhere.
        facts: facts about the model, JSON-ready.
        individuals: number of those from which the model was chosen.
    """
    place, home = target.resolve(), folder.resolve()
    if place.is_relative_to(home):
        name = place.relative_to(home).as_posix()
        record = {"folder": name, "digest": folder_digest(target), "individuals": individuals, "model": dict(facts)}
        _rename_records(folder)
        write_json(_record_of(folder, name), record)


def _record_of(folder: Path, name: str) -> Path:
    """The file of the record of a model; each has its own."""
    return folder / "exports" / f"{name.replace('%', '%25').replace('/', '%2F')}.json"


def _rename_records(folder: Path) -> None:
    """Renames records of earlier versions, in which two models could have one name."""
    for file in sorted((folder / "exports").glob("*.json")):
        try:
            found = load_json(file)
            place = _record_of(folder, str(found["folder"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # ``cycleqd verify`` names it
        if "digest" in found and not place.exists():
            file.replace(place)
