"""The model card of an exported merge."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from cycleqd_jax.config import RunConfig
from cycleqd_jax.models.files import hub
from cycleqd_jax.version import __version__

__all__ = ["model_card"]

_METHODS = {
    "cycleqd": "CycleQD",
    "qd": "plain QD",
    "dns": "Dominated Novelty Search",
    "random": "random search",
    "cmaes": "CMA-ES",
    "nsga2": "NSGA-II",
}


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _budget(config: RunConfig) -> str:
    limits = {"individuals": config.search.budget, "items": config.search.budget_items}
    given = [f"{limit} evaluated {name}" for name, limit in limits.items() if limit is not None]
    return f", at most {' and '.join(given)}" if given else ""


def _repository(model: str | Path | None, folder: Path) -> str | None:
    """The repository of the hub that a model of the config is; None for a model of this machine, which lies in ``folder``."""
    return None if model is None or Path(model) == folder else hub.repository_name(model)


def model_card(
    config: RunConfig,
    folders: Mapping[str, Path],
    chosen: Mapping[str, Any],
    results: Mapping[str, Any],
    command: Sequence[str],
) -> str:
    """The README.md of a model folder: Hugging Face metadata, lineage and scores.

    Args:
        config: the config of the run.
        folders: the folders of base and experts, by the names of the results table.
        chosen: for the aggregated model the ``elites``, their weights ``beta`` and the ``mixing`` coefficients; for an elite
            its ``id`` and ``mixing``.
        results: the content of ``results.json``.
        command: arguments of ``cycleqd``; empty where the run was started from Python.
    """
    base = str(config.model.base) if config.model.base is not None else "tiny-llama (trained by this run)"
    given: Mapping[str, str | Path | None] = {"base": config.model.base} | {
        f"expert/{name}": path for name, path in (config.model.experts or {}).items()
    }
    sources = [_repository(given.get(name), folder) for name, folder in folders.items()]
    repositories = list(dict.fromkeys(source for source in sources if source is not None))
    meta = {
        **({"base_model": repositories, "base_model_relation": "merge"} if repositories else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["merge", "cycleqd"],
    }
    names = [*config.task_names, "average"]
    rows = [
        f"| {method} | " + " | ".join(_cell(scores["test"][name]) for name in names) + " |"
        for method, scores in results["methods"].items()
    ]
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
        kind = "elite" if config.search.method in ("cycleqd", "qd") else "individual"
        weights = f"those of individual {chosen['id']}, the {kind} of the best average on the train half."
        elites_table = ""
    mixing = ""
    if chosen["mixing"] is not None:
        parts = ", ".join(f"{name} {a:+.4f}" for name, a in zip(config.task_names, chosen["mixing"], strict=True))
        if not config.search.coefficients:
            mixing = f"after crossover: {parts}. SVD mutation adds to them, matrix by matrix."
        elif config.search.groups == 1:
            mixing = f": {parts}."
        else:
            mixing = f", averaged over {config.search.groups} groups of layers: {parts}."
        mixing = f"\nWeights of the experts' task vectors{'' if mixing[0] in ':,' else ' '}{mixing}\n"
    made = f"Made by `{shlex.join(['cycleqd', *command])}`. " if command else ""
    return f"""---
{yaml.safe_dump(meta, sort_keys=False).strip()}
---

# {config.name}: experts merged by {_METHODS[config.search.method]}

Evolved with cycleqd_jax {__version__} from experts for {", ".join(config.task_names)}, fine-tuned from {base}:
{config.search.generations} generations of {config.search.batch_size}{_budget(config)}, seed {config.seed}. The weights are
{weights}

| model | from |
|---|---|
{models}
{elites_table}{mixing}
## Scores on the test half (%)

| method | {" | ".join(names)} |
|---|{"---|" * len(names)}
{chr(10).join(rows)}

{made}To reproduce this model, run `cycleqd run` with the `config.yaml` of the run folder.
"""
