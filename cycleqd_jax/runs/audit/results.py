"""The tables and exported models of a run, and the models that it has read."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from cycleqd_jax.config import RunConfig
from cycleqd_jax.files import load_json
from cycleqd_jax.models.files import hub
from cycleqd_jax.report.read import load_items, load_results, load_selection
from cycleqd_jax.runs.audit.found import ROUNDING, Audit
from cycleqd_jax.runs.folder.models import recorded_folders
from cycleqd_jax.runs.inputs.digests import folder_digest
from cycleqd_jax.search import Journal
from cycleqd_jax.types import InputError

__all__ = ["check_exports", "check_models", "check_tables"]


def check_tables(path: Path, journal: Journal, audit: Audit) -> None:
    """Compares the tables with each other, and the selection with the journal."""
    again = "remove it, and run cycleqd evaluate"
    try:
        results, items, selection = load_results(path), load_items(path), load_selection(path)
    except InputError as error:
        audit.problems.append(str(error))
        return
    if results is not None:
        file = path / "tables" / "results.json"
        audit.checked.append("the tables")
        for method, splits in items.items():
            for split, tasks in splits.items():
                shown = results["methods"].get(method, {}).get(split, {})
                wrong = [t for t, scores in tasks.items() if not _is_mean(shown.get(t), scores)]
                if tasks and not wrong and not _is_average(shown.get("average"), [shown[t] for t in tasks]):
                    wrong = ["average"]
                audit.expect(
                    not wrong,
                    f"expected the means of items.json for {method} on {split}, got others of {wrong} in {file}; {again}",
                )
        unchecked = {
            method: None
            for method, splits in results["methods"].items()
            for split, scores in splits.items()
            if not items.get(method, {}).get(split) and any(score is not None for score in scores.values())
        }
        if unchecked:
            audit.notes.append(
                f"note: {path / 'tables' / 'items.json'} lacks scores of problems of {', '.join(unchecked)}, whose scores in "
                f"{file} are not checked"
            )
        named = [
            results.get("best_elite"),
            results.get("selected", {}).get("id"),
            *results.get("aggregate", {}).get("elites", []),
        ]
        unknown = [identity for identity in named if identity is not None and journal.get(identity) is None]
        audit.expect(not unknown, f"expected individuals of the journal, got {unknown[:5]} in {file}; {again}")
    if selection is not None:
        file = path / "tables" / "selection.json"
        audit.checked.append("the selection")
        alive = [one for one in selection["candidates"] if one["scores"] is not None]
        wrong = [
            one["ids"] for one in alive for t, scores in one["items"].items() if not _is_mean(one["scores"].get(t), scores)
        ]
        audit.expect(not wrong, f"expected the means of items, got others for the candidates {wrong[:3]} in {file}; {again}")
        wrong = [one["ids"] for one in alive if not _is_average(one["average"], [*one["scores"].values()])]
        audit.expect(not wrong, f"expected averages of scores, got others for the candidates {wrong[:3]} in {file}; {again}")
        unknown = [i for one in selection["candidates"] for i in one["ids"] if journal.get(i) is None]
        audit.expect(not unknown, f"expected individuals of the journal, got {unknown[:5]} in {file}; {again}")
        chosen = [one for one in alive if {"kind": one["kind"], "ids": one["ids"]} == selection["chosen"]]
        best = max((one["average"] for one in alive), default=math.nan)
        audit.expect(
            bool(chosen) and chosen[0]["average"] >= best - ROUNDING,
            f"expected the best candidate to be chosen, got {selection['chosen']} in {file}; {again}",
        )


def _is_mean(score: float | None, items: Sequence[float]) -> bool:
    return score is not None and bool(items) and math.isclose(score, statistics.fmean(items), rel_tol=0, abs_tol=ROUNDING)


def _is_average(average: float | None, scores: Sequence[float]) -> bool:
    """Whether it is the mean over tasks; tables of older versions may have none."""
    return average is None or _is_mean(average, scores)


def check_exports(path: Path, individuals: int, audit: Audit) -> None:
    """Compares exported models with the digests that were recorded of them."""
    known = set()
    for file in sorted(filter(Path.is_file, (path / "exports").glob("*.json"))):
        try:
            record = load_json(file)
            folder, expected = path / str(record["folder"]), str(record["digest"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            audit.problems.append(
                f"expected folder and digest of an exported model, got {type(error).__name__} {error} in {file}; remove it, "
                "and export the model again"
            )
            continue
        known.add(folder)
        if not folder.exists():
            audit.notes.append(f"note: {folder} was exported, and is not there any more")
            continue
        before = record.get("individuals")  # earlier versions did not record it
        commands = {path / "model": "cycleqd export", path / "best_elite": "cycleqd export --best-elite"}
        if folder in commands and isinstance(before, int) and before < individuals:
            audit.notes.append(
                f"note: {folder} was exported when the journal had {before} individuals, and it has {individuals} now; run "
                f"{commands[folder]} to choose among all of them"
            )
        found = folder_digest(folder)
        audit.checked.append(f"{folder.name}/")
        audit.expect(
            found == expected, f"expected the exported model with digest {expected}, got {found} in {folder}; export it again"
        )
    for name in ("model", "best_elite"):
        if (path / name).exists() and path / name not in known:
            audit.notes.append(f"note: {path / name} was exported by a version that recorded no digest, and is not checked")


def check_models(path: Path, config: RunConfig, audit: Audit) -> None:
    """Base and experts, where they are on this machine."""
    given = [config.model.base, config.model.tokenizer, *config.given_experts.values()]
    remote = [str(name) for name in given if name is not None and not os.path.exists(name) and hub.is_repository(name)]
    if not (path / "inputs.json").exists():
        audit.notes.append(f"note: {path / 'inputs.json'} is not there, so base and experts are not checked")
    elif remote:
        audit.notes.append(f"note: {', '.join(remote)} are repositories of the hub, which are not downloaded to be checked")
    else:
        try:
            recorded_folders(dataclasses.replace(config, output=str(path)))
            audit.checked.append("base and experts")
        except (InputError, OSError) as error:
            audit.problems.append(str(error))
