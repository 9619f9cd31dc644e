"""The evaluation of models in stages: on some problems, then on others, as long as more are asked for."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cycleqd_jax.types import Evaluation, InputError, ItemEvaluator, ModelEvaluator, NextItems, Outcome, Params, Split

__all__ = ["evaluate_in_stages"]


def evaluate_in_stages(
    evaluator: ModelEvaluator,
    params: Params,
    stages: Sequence[NextItems],
    split: Split,
    *,
    donate: bool = False,
    **options: Any,
) -> list[Evaluation]:
    """Evaluates models on the problems that are asked for, until no more are; the weights are loaded once.

    Args:
        evaluator: an :class:`~cycleqd_jax.types.ItemEvaluator`.
        params: weights of all models, as the evaluator takes them.
        stages: for each model, which problems come next.
        split: the problems.
        donate: see :meth:`~cycleqd_jax.types.ItemEvaluator.load`.
        options: see :meth:`~cycleqd_jax.types.ItemEvaluator.score`.

    Returns:
        An evaluation for each model. One that was evaluated on all problems is that of an evaluation without stages; of others,
        ``evaluated`` has the positions of the problems. ``seconds`` is the time of all models together, in each of them.

    Raises:
        InputError: the evaluator can't score some problems only; or a problem is asked for twice, for one that does not
            exist, or for none.
    """
    if not isinstance(evaluator, ItemEvaluator):
        raise InputError(
            f"expected an evaluator that scores some problems of a split, got {type(evaluator).__name__}; evaluate on all"
        )
    start = time.perf_counter()
    sizes = evaluator.sizes(split)
    outcomes: list[dict[str, dict[int, Outcome]]] = [{name: {} for name in sizes} for _ in stages]
    latest: dict[int, Evaluation] = {}
    evaluator.load(params, donate=donate)
    while wanted := _wanted(stages, outcomes, latest, sizes):
        found = evaluator.score(wanted, split, **options)
        for i, evaluation in found.items():
            latest[i] = evaluation
            for name, new in evaluation.outcomes.items():
                outcomes[i][name] |= zip(wanted[i].get(name, ()), new, strict=True)
    seconds = {"evaluate": time.perf_counter() - start}
    return [_merged(latest[i], outcomes[i], sizes, seconds) for i in range(len(stages))]


def _wanted(
    stages: Sequence[NextItems],
    outcomes: Sequence[Mapping[str, Mapping[int, Outcome]]],
    latest: Mapping[int, Evaluation],
    sizes: Mapping[str, int],
) -> dict[int, Mapping[str, Sequence[int]]]:
    """The next problems of every model that has some."""
    wanted: dict[int, Mapping[str, Sequence[int]]] = {}
    for i, following in enumerate(stages):
        if i in latest and latest[i].error is not None:
            continue
        scores = {name: {place: one.score.value for place, one in found.items()} for name, found in outcomes[i].items()}
        items = following(scores)
        if items is None and i in latest:
            continue
        if not items or not any(items.values()):
            raise InputError(f"expected problems of some task, got {items}; correct what chooses them")
        for name, places in items.items():
            new = set(places) - outcomes[i].get(name, {}).keys()
            if len(new) < len(places) or not new <= set(range(sizes.get(name, 0))):
                raise InputError(
                    f"expected new positions below {sizes.get(name, 0)}, each once, got {list(places)[:8]} of task {name!r}; "
                    "correct what chooses them"
                )
        wanted[i] = items
    return wanted


def _merged(
    last: Evaluation, outcomes: Mapping[str, Mapping[int, Outcome]], sizes: Mapping[str, int], seconds: dict[str, float]
) -> Evaluation:
    """One evaluation of all stages of a model, whose last one is ``last``."""
    if last.error is not None:
        return dataclasses.replace(last, outcomes={}, seconds=seconds)
    places = {name: sorted(found) for name, found in outcomes.items()}
    is_whole = all(len(places[name]) == size for name, size in sizes.items())
    return dataclasses.replace(
        last,
        outcomes={name: [outcomes[name][place] for place in found] for name, found in places.items()},
        seconds=seconds,
        evaluated=None if is_whole else places,
    )
