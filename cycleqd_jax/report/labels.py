"""The names of search methods, and of the rows of the results table."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["SEARCHES", "SEARCH_METHODS", "candidate_label", "compared_label", "method_label"]

SEARCH_METHODS = {
    "random": "random search",
    "cmaes": "CMA-ES",
    "nsga2": "NSGA-II",
    "qd": "plain QD",
    "dns": "Dominated Novelty Search",
    "cycleqd": "CycleQD",
}
"""The name of every ``search.method`` within a sentence, in the order of their rows."""


def _as_label(name: str) -> str:
    return name[0].upper() + name[1:]


SEARCHES = {
    row: label
    for method, name in SEARCH_METHODS.items()
    for row, label in ((method, _as_label(name)), (f"{method}_selected", f"{_as_label(name)}, selected"))
}
"""The label of every row that a search ends with, in the order of the rows. ``cycleqd`` is the merge of equation 5, and
every other method the individual with the highest average on train. ``METHOD_selected`` was chosen on validation problems."""

_LABELS = {
    "base": "Base model",
    "prepared_base": "Prepared base",
    "finetune_all": "Fine-tuned on all data (steps of one expert)",
    "finetune_all_longer": "Fine-tuned on all data (steps of all experts)",
    "uniform_merge": "Uniform merge",
    "task_arithmetic": "Task arithmetic",
    "ties": "TIES",
    "dare": "DARE",
    "dare_ties": "DARE-TIES",
    "slerp": "SLERP",
    "gradient": "Gradient descent on coefficients",
    "cycleqd_best_elite": "CycleQD, best elite",
    **{f"{method}_soup": f"{_as_label(name)}, soup" for method, name in SEARCH_METHODS.items()},
    "cycleqd_soup": "CycleQD, soup of elites",
    **SEARCHES,
}


def method_label(method: str) -> str:
    """The label of a row: ``"expert/mbpp"`` → ``"Expert: mbpp"``; a row that is not known is its own label."""
    if method.startswith("expert/"):
        return f"Expert: {method.removeprefix('expert/')}"
    return _LABELS.get(method, method)


def compared_label(name: str, search: str | None, label: str | None) -> str:
    """The label of a method in a comparison.

    Args:
        name: the name of the method.
        search: its search method; None is that of the config.
        label: the label that a file of methods gives it; None is that of the search method if that is its name, or its name.
    """
    return label or (method_label(name) if name == search else name)


def candidate_label(kind: str, ids: Iterable[int]) -> str:
    """The label of a candidate of the selection: ``"aggregate"``, ``"elite 12"`` or ``"soup 12 + 40"``.

    Args:
        kind: ``aggregate``, ``elite`` or ``soup``.
        ids: the ids of its individuals.
    """
    return kind if kind == "aggregate" else f"{kind} {' + '.join(map(str, ids))}"
