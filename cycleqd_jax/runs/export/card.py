"""The model card of an exported merge."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cycleqd_jax.config import RunConfig
from cycleqd_jax.models.files import hub
from cycleqd_jax.report.labels import SEARCH_METHODS
from cycleqd_jax.report.tables import ResultsTable
from cycleqd_jax.runs.families import family_of
from cycleqd_jax.version import __version__

__all__ = ["model_card"]


def _length(config: RunConfig, evaluated: int) -> str:
    """How long the search was. With a budget, the number of generations does not say it."""
    limits = {"individuals": config.search.budget, "items": config.search.budget_items}
    given = [f"{limit} {name}" for name, limit in limits.items() if limit is not None]
    if not given:
        return f"{config.search.generations} generations of {config.search.batch_size}"
    return f"{evaluated} evaluated individuals, experts included (budget: {' and '.join(given)})"


def _repository(model: str | Path | None, folder: Path) -> str | None:
    """The repository of the hub that a model of the config is; None for a model of this machine, which lies in ``folder``.

    A path of two parts, such as ``models/sql``, may be missing here. It is a repository only if ``folder`` is its snapshot, or
    if it has a revision.
    """
    name = None if model is None or Path(model) == folder else hub.repository_name(model)
    return name if name is not None and ("@" in str(model) or hub.is_snapshot(folder, name)) else None


def _of_individuals(config: RunConfig, chosen: Mapping[str, Any]) -> str:
    """The weights of an individual, or of several on average."""
    if "origin" in chosen:
        return f"those of individual {chosen['id']}, {chosen['origin']}."
    if "ids" in chosen:
        *others, last = map(str, chosen["ids"])
        return f"the average of those of individuals {', '.join(others)} and {last}, a greedy soup on validation problems."
    if "selection" in chosen:
        return f"those of individual {chosen['id']}."
    kind = "elite" if config.search.method in ("cycleqd", "qd") else "individual"
    if "soup" in chosen:
        return (
            f"those of individual {chosen['id']}, the {kind} with the highest average on {chosen['soup']['problems']} "
            "validation problems. No other improved the soup that begins with it."
        )
    return f"those of individual {chosen['id']}, the {kind} with the highest average on the train problems."


def _choice(chosen: Mapping[str, Any]) -> str:
    """On what a model was selected; empty for one that was not."""
    if "selection" not in chosen:
        return ""
    found = chosen["selection"]
    elites = found["elites"]
    one = "the individual with the highest average on the train problems"
    given = [
        *(["the merge of the archives' best elites"] if found["candidates"] > elites + found["soups"] else []),
        one if elites == 1 else f"the {elites} individuals with the highest averages on the train problems",
        *(["a soup of them"] if found["soups"] else []),
    ]
    among = given[0] if len(given) == 1 else f"{', '.join(given[:-1])} and {given[-1]}"
    return (
        f" The model was chosen among {found['candidates']} candidates ({among}) by the average on {found['problems']} "
        f"validation problems, {100 * found['average']:.1f} %. The test problems had no part in the choice."
    )


def _train_scores(chosen: Mapping[str, Any]) -> str:
    """The scores of an individual on the train problems, by task."""
    if "train" not in chosen:
        return ""
    found = chosen["train"]
    scores = ", ".join(f"{task} {100 * score:.1f} %" for task, score in found.items()) if found else "none: it is quarantined"
    return f"\nScores of the individual on the train problems: {scores}.\n"


def _test_scores(table: ResultsTable | None) -> str:
    """The results table, as a section; nothing where no row has test scores."""
    if table is None or "test" not in table.splits:
        return ""
    details = table.details("test")
    names = [*table.columns, *details]
    rows = []
    for m, method in enumerate(table.methods):
        cells = [table.cell("test", m, c) for c in range(len(table.columns))]
        rows.append(f"| {method} | " + " | ".join([*cells, *(column[m] for column in details.values())]) + " |")
    return f"""
## Scores on the test problems (%)

| method | {" | ".join(names)} |
|---|{"---|" * len(names)}
{chr(10).join(rows)}

{table.caption().partition(" A score is")[0].partition(" The best of")[0]}
"""


def model_card(
    config: RunConfig,
    folders: Mapping[str, Path],
    chosen: Mapping[str, Any],
    table: ResultsTable | None,
    command: Sequence[str],
    evaluated: int,
    library: str,
) -> str:
    """The README.md of a model folder: Hugging Face metadata, lineage and scores.

    Args:
        config: the config of the run.
        folders: the folders of base and experts, by the names of the results table.
        chosen: the facts of the model (:class:`~cycleqd_jax.runs.evolution.Merged`). Of an individual that was rebuilt
            from the journal they may have its ``origin``, in words, and ``train``, its scores on the train problems.
        table: the results of the run; None before it was evaluated.
        command: arguments of ``cycleqd``; empty where the run was started from Python.
        evaluated: number of individuals that the search evaluated, the experts included.
        library: what opens the model (:meth:`~cycleqd_jax.runs.families.Family.library`).
    """
    base = str(config.model.base) if config.model.base is not None else "tiny-llama (trained by this run)"
    if config.model.prepare is not None:
        tasks = ", ".join(config.model.prepare.share_of(config.task_names))
        steps = config.model.prepare.steps
        base = f"the prepared base θ_base ({base} after {steps} steps of joint fine-tuning on {tasks})"
    given: Mapping[str, str | Path | None] = {"base": config.model.base} | {
        f"expert/{name}": path for name, path in config.given_experts.items()
    }
    sources = [_repository(given.get(name), folder) for name, folder in folders.items()]
    repositories = list(dict.fromkeys(source for source in sources if source is not None))
    meta = {
        **({"base_model": repositories, "base_model_relation": "merge"} if repositories else {}),
        "library_name": library,
        "pipeline_tag": family_of(config).pipeline,
        "tags": ["merge", "cycleqd"],
    }
    models = "\n".join(f"| {name} | {given.get(name) or folder} |" for name, folder in folders.items())
    if "elites" in chosen:
        weights = (
            "θ_base + Σ_k β_k τ_k*, where τ_k* is the task vector of the best individual of archive k and β = softmax(f*)."
        )
        elites = [
            f"| {name} | {identity} | {beta:.4f} |\n"
            for name, identity, beta in zip(config.task_names, chosen["elites"], chosen["beta"], strict=True)
        ]
        elites_table = "\n| archive | individual | β |\n|---|---|---|\n" + "".join(elites)
    else:
        weights, elites_table = _of_individuals(config, chosen), ""
    mixing = ""
    if chosen["mixing"] is not None:
        parts = ", ".join(f"{name} {a:+.4f}" for name, a in zip(config.expert_names, chosen["mixing"], strict=True))
        if not config.search.coefficients:
            mixing = f"after crossover: {parts}. SVD mutation adds to them, matrix by matrix."
        elif config.search.groups == 1:
            mixing = f": {parts}."
        else:
            mixing = f", averaged over {config.search.groups} groups of layers: {parts}."
        mixing = f"\nWeights of the experts' task vectors{'' if mixing[0] in ':,' else ' '}{mixing}\n"
    opened = ""
    if library != "transformers":
        opened = f"Open the model with {library}: transformers does not have its architecture.\n\n"
    made = f"Made by `{shlex.join(['cycleqd', *command])}`. " if command else ""
    return f"""---
{yaml.safe_dump(meta, sort_keys=False).strip()}
---

# {config.name}: experts merged by {SEARCH_METHODS[config.search.method]}

Evolved with cycleqd_jax {__version__} from experts for {", ".join(config.expert_names)}:
{_length(config, evaluated)}, seed {config.seed}.
The experts were fine-tuned from {base}. The weights are
{weights}{_choice(chosen)}

| model | from |
|---|---|
{models}
{elites_table}{mixing}{_train_scores(chosen)}{_test_scores(table)}
{opened}{made}To reproduce this model, run `cycleqd run` with the `config.yaml` of the run folder.
"""
