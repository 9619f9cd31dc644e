"""What a run has cost: tokens, FLOPs and seconds of every row of the results table, by stage, and of every generation.

The journal has tokens and seconds of every individual, ``tables/usage.json`` those of training and of the final evaluation, and
the FLOPs of one forward pass. Models that segment images count images instead of tokens. What is unknown, such as the tokens of
a journal of version 0.1, stays unknown in every sum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.individual import Individual
from cycleqd_jax.report.history import History, load_history
from cycleqd_jax.report.labels import candidate_label
from cycleqd_jax.report.read import load_selection, load_usage
from cycleqd_jax.report.tables import results_table

__all__ = ["PAPER_GPU_HOURS", "STAGES", "Cost", "Costs", "load_costs"]

PAPER_GPU_HOURS: Mapping[str, float] = {"finetune_all": 200.0, "cycleqd": 410.0}
"""H100-hours that the paper states, for experts of 8 billion parameters and 1200 generations. Only such runs compare."""

STAGES = ("train", "express", "evaluate", "select", "measure")
"""The stages of a row: training of the models that it needs, the weights of the search's individuals, their evaluation, the
evaluation of candidates for the final model, and the evaluation of the row itself on the train and test problems."""

_ALWAYS_TRAINED = ("prepared_base", "finetune_all", "finetune_all_longer", "gradient")

_BACKWARD = 3  # FLOPs of a training step over those of its forward pass


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a stage; None is unknown.

    Attributes:
        tokens: tokens that went through the model's layers, or images that were segmented.
        flops: floating-point operations.
        seconds: wall time. That of individuals evaluated at the same time is added up.
    """

    tokens: int | None = 0
    flops: int | None = 0
    seconds: float | None = 0.0

    @classmethod
    def total(cls, costs: Iterable[Cost]) -> Cost:
        """The sum; unknown where a part is."""
        found = [*costs]
        return cls(
            None if any(one.tokens is None for one in found) else sum(one.tokens or 0 for one in found),
            None if any(one.flops is None for one in found) else sum(one.flops or 0 for one in found),
            None if any(one.seconds is None for one in found) else sum(one.seconds or 0.0 for one in found),
        )


@dataclasses.dataclass(frozen=True)
class Costs:
    """The costs of a run.

    Attributes:
        methods: for every row of the results table the cost of each stage that it has. Before the results are there, the only
            row is the search.
        generations: the individuals, and the cost of ``express`` and ``evaluate``, of every generation; the first, -1, is that
            of the experts.
        gpu: ``name``, ``peak`` (FLOP/s) and ``utilisation`` (shares of the peak, of ``train`` and ``evaluate``) of the GPU for
            which hours are extrapolated; None if unknown.
        unit: what ``tokens`` counts: ``"tokens"`` or ``"images"``.
    """

    methods: Mapping[str, Mapping[str, Cost]]
    generations: Mapping[int, tuple[int, Mapping[str, Cost]]]
    gpu: Mapping[str, Any] | None
    unit: str = "tokens"

    def total(self, method: str) -> Cost:
        """The cost of a row without ``measure``, which reports the row but is not part of the method."""
        return Cost.total(cost for stage, cost in self.methods[method].items() if stage != "measure")

    def gpu_hours(self, method: str) -> float | None:
        """The hours that the FLOPs of a row would take on the GPU, ``FLOPs / (peak × utilisation)``; without ``measure``.

        This is an extrapolation. Time in sandboxes, loading and idle devices is not in it.
        """
        hours = 0.0
        for stage, cost in self.methods[method].items():
            if stage == "measure":
                continue
            if self.gpu is None or cost.flops is None:
                return None
            share = self.gpu["utilisation"]["evaluate" if stage in ("evaluate", "select") else "train"]
            hours += cost.flops / (self.gpu["peak"] * share) / 3600
        return hours

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        methods = {
            method: {
                "stages": {stage: dataclasses.asdict(cost) for stage, cost in stages.items()},
                "total": dataclasses.asdict(self.total(method)),
                "gpu_hours": self.gpu_hours(method),
            }
            for method, stages in self.methods.items()
        }
        generations = [
            {
                "generation": generation,
                "individuals": count,
                "stages": {s: dataclasses.asdict(cost) for s, cost in stages.items()},
            }
            for generation, (count, stages) in self.generations.items()
        ]
        return {"unit": self.unit, "gpu": self.gpu, "methods": methods, "generations": generations}


def load_costs(folder: Path, history: History | None = None) -> Costs | None:
    """Reads the costs of a run; None where nothing is known.

    Args:
        folder: the run folder.
        history: its journal; by default it is read.

    Raises:
        InputError: if a file is damaged.
    """
    folder = Path(folder)
    history = load_history(folder) if history is None else history
    usage, selection = load_usage(folder), load_selection(folder)
    if usage is None and history is None:
        return None
    generations = {} if history is None else _generations(history, usage)
    search = {
        stage: Cost.total(stages[stage] for _, stages in generations.values())
        for stage in ("express", "evaluate")
        if generations
    }
    method = None if history is None else history.grid.method
    measured = (folder / "tables" / "results.json").exists()
    names: Sequence[str] = results_table(folder).methods if measured else ([] if method is None else [method])
    methods: dict[str, dict[str, Cost]] = {}
    for name in names:
        stages = {"train": _training(name, names, usage)}
        if method is not None and (name == method or name.startswith(f"{method}_")):
            stages |= search
            if selection is not None and name.endswith(("_selected", "_soup")):
                stages["select"] = _selecting(selection, usage)
        if measured:
            stages["measure"] = _measuring(name, usage)
        methods[name] = stages
    known = usage or {"gpu": None}
    return Costs(methods, generations, known["gpu"], known.get("unit", "tokens"))


def _generations(history: History, usage: Mapping[str, Any] | None) -> dict[int, tuple[int, dict[str, Cost]]]:
    """The costs of the generations. Individuals of another run that were not evaluated in this one have cost nothing."""
    members: dict[int, list[Individual]] = {}
    for one in history.individuals:
        found = members.setdefault(one.generation, [])
        if one.seconds or one.tokens is None:
            found.append(one)
    return {
        generation: (
            len(of),
            {
                "express": Cost.total(
                    Cost(0, None if usage is None else usage["flops"]["express"], one.seconds.get("express")) for one in of
                ),
                "evaluate": Cost.total(_decoding(one.tokens, one.seconds.get("evaluate"), usage, search=True) for one in of),
            },
        )
        for generation, of in sorted(members.items())
    }


def _decoding(
    tokens: Mapping[str, int] | None, seconds: float | None, usage: Mapping[str, Any] | None, *, search: bool = False
) -> Cost:
    """The cost of one evaluation, from its token counts.

    Args:
        tokens: the token counts; None is unknown.
        seconds: the seconds of the evaluation.
        usage: what the run has used.
        search: whether it is of the search or the selection, which may decode several individuals over one base.
    """
    if tokens is None:
        return Cost(None, None, seconds)
    flops = _forward(tokens["computed"], tokens["generated"], tokens["attended"], usage)
    if flops is not None and usage is not None and search:
        flops += usage["flops"].get("mixed", 0) * tokens["computed"]
    return Cost(tokens["computed"], flops, seconds)


def _forward(tokens: int, logits: int, pairs: int, usage: Mapping[str, Any] | None) -> int | None:
    """FLOPs of a forward pass.

    Args:
        tokens: the number of tokens that go through the layers.
        logits: the number of tokens whose logits are computed.
        pairs: the number of pairs of a token and a token that it attends to.
        usage: what the run has used.
    """
    if usage is None:
        return None
    flops = usage["flops"]
    return flops["layers"] * tokens + flops["head"] * logits + flops["pair"] * pairs


def _training(name: str, rows: Sequence[str], usage: Mapping[str, Any] | None) -> Cost:
    """The trainings of a row: its own, that of a prepared base, and for merges and searches those of all experts.

    Models that the config gives are not trained. The tiny base counts for the row ``base`` only. Rows that are always trained
    are unknown where there is no record of their training.

    Args:
        name: the row.
        rows: all rows.
        usage: what the run has used.
    """
    if usage is None:
        return Cost(None, None, None)
    needed = {name}
    if name != "base":
        needed.add("prepared_base")
    if name not in ("base", "prepared_base") and not name.startswith(("expert/", "finetune_all")):
        needed |= {model for model in usage["training"] if model.startswith("expert/")}
    always = {model for model in needed if model in rows and model in _ALWAYS_TRAINED}
    found = []
    for model in sorted(needed & {*usage["training"], *always}):
        one = usage["training"].get(model)
        if one is None:
            found.append(Cost(None, None, None))
        else:
            forward = _forward(one["tokens"], one["tokens"], one["attended"], usage)
            flops = None if forward is None else _BACKWARD * forward + one.get("flops", 0)
            found.append(Cost(one["tokens"], flops, one["seconds"]))
    return Cost.total(found)


def _selecting(selection: Mapping[str, Any], usage: Mapping[str, Any] | None) -> Cost:
    seconds = {} if usage is None else usage["selection"]
    return Cost.total(
        _decoding(one.get("tokens"), seconds.get(candidate_label(one["kind"], one["ids"])), usage, search=True)
        for one in selection["candidates"]
    )


def _measuring(name: str, usage: Mapping[str, Any] | None) -> Cost:
    splits = {} if usage is None else usage["evaluation"].get(name, {})
    if not splits:
        return Cost(None, None, None)
    return Cost.total(_decoding(one["tokens"], one["seconds"], usage) for one in splits.values())
