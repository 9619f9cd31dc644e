"""The methods of a comparison: what a file of methods says, and the configs of their runs."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax.config import RunConfig, SearchConfig, load_config, read_yaml, to_dict, unused_keys
from cycleqd_jax.report.labels import SEARCH_METHODS, compared_label, method_label
from cycleqd_jax.runs.inputs.resolve import resolve
from cycleqd_jax.search import individuals_within
from cycleqd_jax.types import InputError, with_place

__all__ = [
    "SHARED_ROWS",
    "Method",
    "Methods",
    "Paper",
    "check_methods",
    "common_tree",
    "method_config",
    "read_methods",
    "shared_rows",
]


def _names_of(key: str) -> tuple[str, ...]:
    """The values that a list of names in a config may have."""
    return typing.get_args(typing.get_args(typing.get_type_hints(RunConfig)[key])[0])


SHARED_ROWS = ("baselines", "merges", "gradient")
"""The keys of the config that add rows which do not depend on the search."""

_KEYS = ("title", "methods", *SHARED_ROWS, "reference", "paper")
_OPEN = ("search", "genome", "export")
"""The parts of a config that methods may change. All others decide about models, problems or decoding."""
_EQUAL = ("search.budget", "search.budget_items", "search.generations", "export.elites")
"""The keys of these parts that are equal for all methods: they decide about the number of evaluations."""

_ROWS = ("base", "prepared_base", "uniform_merge", "gradient", *_names_of("baselines"), *_names_of("merges"))
_ENDS = ("_best_elite", "_soup", "_selected")
"""Names of rows that do not depend on a search, and the ends of names of rows that do."""


@dataclasses.dataclass(frozen=True)
class Method:
    """A row, or a few rows, of a comparison.

    Attributes:
        name: name of its run folder and of its rows.
        search: its ``search.method``; None is that of the config.
        label: its display name; None is that of its search method, or its name.
        overrides: what differs from the config: dotted key → value.
    """

    name: str
    search: str | None
    label: str | None = None
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Paper:
    """Figures that a paper gives, in percent.

    Attributes:
        setting: name of the config with the paper's setting.
        tasks: the names of its tasks.
        rows: row → task, or ``average`` → figure.
    """

    setting: str
    tasks: tuple[str, ...]
    rows: Mapping[str, Mapping[str, float]]


@dataclasses.dataclass(frozen=True)
class Methods:
    """What a file of methods says.

    Attributes:
        methods: in the order of the table.
        title: the title of the table.
        rows: what replaces the config's ``baselines`` and ``merges``, where the file has them.
        reference: the row that the others are compared with.
        paper: the paper's figures.
        source: the file, for messages; ``--methods`` where names were given.
    """

    methods: tuple[Method, ...]
    title: str = "Comparison"
    rows: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reference: str | None = None
    paper: Paper | None = None
    source: str = "--methods"


def read_methods(source: str | Path | Sequence[str]) -> Methods:
    """Reads a file of methods.

    Args:
        source: path of a YAML file, or names of search methods (a list, or a text with commas).

    Raises:
        InputError: the file can't be read; a key, a method or a figure is wrong; or a method comes twice.
    """
    if isinstance(source, Path) or (isinstance(source, str) and source.endswith((".yaml", ".yml"))):
        return _read(Path(source))
    names = [name.strip() for name in source.split(",")] if isinstance(source, str) else list(source)
    if not names:
        raise InputError("expected at least one method, got none in --methods; name one")
    for name in names:
        if name not in SEARCH_METHODS:
            raise InputError(_unknown(f"expected names of search methods ({', '.join(SEARCH_METHODS)})", name, SEARCH_METHODS))
        if names.count(name) > 1:
            raise InputError(f"expected every method once, got {name!r} {names.count(name)} times in --methods; remove one")
    return Methods(tuple(Method(name, name) for name in names))


def _read(path: Path) -> Methods:
    tree = read_yaml(path, "a file of methods")
    for key in tree:
        if key not in _KEYS:
            raise InputError(_unknown(f"expected one of the keys {', '.join(_KEYS)} in {path}", str(key), _KEYS))
    given = tree.get("methods")
    if not isinstance(given, dict) or not given:
        raise InputError(f"expected methods to map names to overrides in {path}, got {given!r}; add a method")
    methods = tuple(_method(str(name), overrides, path) for name, overrides in given.items())
    for key in ("title", "reference"):
        if not isinstance(tree.get(key), str | None):
            raise InputError(f"expected {key} to be a text in {path}, got {tree[key]!r}; correct it")
    _check_labels(methods, path)
    rows = {key: tree[key] for key in SHARED_ROWS if key in tree}
    rows = {key: [] if value is None and key != "gradient" else value for key, value in rows.items()}
    paper = None if tree.get("paper") is None else _paper(tree["paper"], methods, path)
    return Methods(methods, tree.get("title") or path.stem, rows, tree.get("reference"), paper, str(path))


def _check_labels(methods: Sequence[Method], path: Path) -> None:
    """Refuses rows that readers could not tell apart."""
    owners = {method_label(row): f"the row {row}" for row in _ROWS}
    for method in methods:
        shown = compared_label(method.name, method.search, method.label)
        owner = f"the method {method.name!r}"
        labels = (shown, *(f"{shown}, {end}" for end in ("best elite", "soup", "soup of elites", "selected")))
        for label in labels:
            if label in owners:
                raise InputError(
                    f"expected every display name once, got {label!r} for {owners[label]} and {owner} in {path}; change a label"
                )
        owners |= dict.fromkeys(labels, owner)


def _method(name: str, overrides: Any, path: Path) -> Method:
    if not name or name != Path(name).name or name.startswith("."):
        raise InputError(f"expected names of methods to be plain file names in {path}, got {name!r}; rename it")
    if name in _ROWS or name.endswith(_ENDS):
        raise InputError(f"expected names of methods that are no names of other rows in {path}, got {name!r}; rename it")
    overrides = {} if overrides is None else overrides
    if not isinstance(overrides, dict):
        raise InputError(f"expected the method {name!r} to map keys to values in {path}, got {overrides!r}; correct it")
    label = overrides.get("label")
    if not isinstance(label, str | None):
        raise InputError(f"expected the label of the method {name!r} to be a text in {path}, got {label!r}; correct it")
    changed = {str(key): value for key, value in overrides.items() if key != "label"}
    for key in changed:
        if key in _EQUAL:
            raise InputError(
                f"expected an equal budget for all methods, got {key} of the method {name!r} in {path}; remove it, and give "
                f"{'it in the config' if key == 'export.elites' else '--budget or --budget-items'}"
            )
        if key.partition(".")[0] not in _OPEN or "." not in key:
            raise InputError(
                f"expected overrides of {', '.join(f'{part}.*' for part in _OPEN)} and a label, which leave models, problems "
                f"and decoding equal, got {key} of the method {name!r} in {path}; put it into the config"
            )
    implied = name if name in SEARCH_METHODS else None
    search = changed.get("search.method", implied)
    if search is not None and search not in SEARCH_METHODS:
        raise InputError(
            _unknown(f"expected search.method of the method {name!r} in {path} to be known", str(search), SEARCH_METHODS)
        )
    if implied is not None and search != implied:
        raise InputError(
            f"expected the method {name!r} to have the search method of its name in {path}, got search.method {search}; "
            "rename it"
        )
    if search is None:
        _check_own_name(name, changed, path)
    return Method(name, search, label, changed)


def _check_own_name(name: str, overrides: Mapping[str, Any], path: Path) -> None:
    """Refuses names that may be meant as those of search methods: such a method would run the search of the config."""
    close = difflib.get_close_matches(name, SEARCH_METHODS, n=1, cutoff=0.8)
    if close:
        raise InputError(
            f"expected search.method for the method {name!r} in {path}, whose name is like that of the search method "
            f"{close[0]}, got none; give it, or correct the name"
        )
    if not overrides:
        raise InputError(
            f"expected overrides, or the name of a search method ({', '.join(SEARCH_METHODS)}), for the method {name!r} in "
            f"{path}, got neither; correct the name, or say what differs from the config"
        )


def _finite(figure: Any) -> float:
    """A figure of a paper; raises ValueError where it is not finite."""
    if not math.isfinite(number := float(figure)):
        raise ValueError(f"the figure {figure}")
    return number


def _paper(tree: Any, methods: Sequence[Method], path: Path) -> Paper:
    try:
        rows = {
            str(row): {str(column): _finite(figure) for column, figure in figures.items()}
            for row, figures in tree["rows"].items()
        }
        paper = Paper(str(tree["setting"]), tuple(map(str, tree["tasks"])), rows)
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
        raise InputError(
            f"expected paper to have a setting, tasks and rows (row → task or average → finite percent) in {path}, got "
            f"{type(error).__name__} {error}; correct it"
        ) from error
    known = [*_ROWS, *(f"expert/{task}" for task in paper.tasks)]
    known += [f"{method.name}{end}" for method in methods for end in ("", *_ENDS)]
    columns = (*paper.tasks, "average")
    for row, figures in rows.items():
        if row not in known:
            raise InputError(_unknown(f"expected the rows of paper in {path} to be rows of the table", row, known))
        for column in figures:
            if column not in columns:
                raise InputError(
                    _unknown(f"expected the columns of paper in {path} to be {' or '.join(columns)}", column, columns)
                )
    return paper


def _unknown(expected: str, name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"{expected}, got {name!r}; {f'did you mean {close[0]}?' if close else 'correct it'}"


def common_tree(config: RunConfig, methods: Methods, budget: int | None, budget_items: int | None) -> dict[str, Any]:
    """What the configs of all methods have in common, as plain YAML types.

    The config's own budgets hold where none is given. Baselines are left out where the experts are given, because they are
    fine-tuned together with the experts.

    Raises:
        InputError: there is no budget, or one below 1; or the rows of the file of methods do not fit the config.
    """
    tree = to_dict(config)
    for option, value in (("--budget", budget), ("--budget-items", budget_items)):
        if value is not None and value < 1:
            raise InputError(f"expected {option} of at least 1, got {value}; increase it")
    if budget is not None or budget_items is not None:
        tree["search"] |= {"budget": budget, "budget_items": budget_items}
    if tree["search"]["budget"] is None and tree["search"]["budget_items"] is None:
        raise InputError("expected a budget that all methods share, got none; give --budget or --budget-items")
    tree |= methods.rows
    if config.model.experts is not None:
        tree["baselines"] = []
    try:
        load_config({**to_dict(config), **{key: tree[key] for key in SHARED_ROWS}})
    except InputError as error:
        raise InputError(f"{str(error).rpartition('; ')[0]} in {methods.source}; correct it") from error
    return tree


def shared_rows(config: RunConfig) -> list[str]:
    """The rows of a run that do not depend on its search."""
    prepared = [] if config.model.prepare is None else ["prepared_base"]
    gradient = [] if config.gradient is None else ["gradient"]
    experts = [f"expert/{task}" for task in config.expert_names]
    return ["base", *prepared, *experts, *config.baselines, "uniform_merge", *config.merges, *gradient]


def method_config(common: Mapping[str, Any], method: Method, seed: int, folder: Path) -> RunConfig:
    """The config of the run of a method.

    Keys of ``search`` that the method does not use are left out, such as the σ of crossover for CMA-ES. So is an
    ``export.method`` that only CycleQD has. The number of generations is so large that the budget ends the search.

    Args:
        common: the result of :func:`common_tree`.
        method: the method.
        seed: the seed of the run.
        folder: the run folder.

    Raises:
        InputError: a key has an unknown name or a wrong value, or the budget is below the method's first population.
    """
    search, export = dict(common["search"]), dict(common["export"])
    search["method"] = method.search or search["method"]
    search |= {key: getattr(SearchConfig(), key) for key in unused_keys(search["method"])}
    if search["method"] != "cycleqd" and export["method"] == "aggregate":
        export["method"] = "best_elite"
    tree = {**common, "seed": seed, "output": str(folder), "search": search, "export": export}
    overrides = [f"{key}={json.dumps(value)}" for key, value in method.overrides.items()]
    try:
        found = load_config(tree, overrides)
    except InputError as error:
        message = with_place(error, f"method {method.name!r}")
        raise InputError(f"{message}{_hint(method, message)}") from error
    options = found.search
    if options.budget is not None:
        generations = math.ceil((options.budget - len(found.tasks)) / options.batch_size)
    else:  # an individual is scored on at least one problem of each task
        generations = max(1, (options.budget_items or 0) // len(found.tasks))
    return dataclasses.replace(found, search=dataclasses.replace(options, generations=generations))


def _hint(method: Method, message: str) -> str:
    """Where a method that was given by its name alone can have keys of its own."""
    of_method = "search.population" in message or not any(f"expected {key} " in message for key in _EQUAL)
    return "" if method.overrides or not of_method else " for this method in a file of methods"


def check_methods(configs: Mapping[str, RunConfig]) -> None:
    """Checks what is known of the runs of all methods without weights, and that every first population fits ``budget_items``.

    Args:
        configs: the configs of one seed, by method.

    Raises:
        InputError: see :func:`~cycleqd_jax.runs.inputs.resolve.resolve`; or ``budget_items`` is too small.
    """
    inputs = None
    for name, config in configs.items():
        try:
            found = resolve(config, architecture=None if inputs is None else inputs.architecture)
        except InputError as error:
            raise InputError(with_place(error, f"method {name!r}")) from error
        inputs = inputs or found
        if config.search.budget_items is None:
            continue
        items, least = sum(task.size("train") for task in inputs.tasks), config.search.least(len(config.expert_names))
        if (individuals_within(config.search.budget, config.search.budget_items, items) or 0) < least:
            raise InputError(
                f"expected search.budget_items of at least {least * items}, {least} individuals with {items} items each, which "
                f"the experts and the first population need, got {config.search.budget_items} in method {name!r}; increase it"
            )
