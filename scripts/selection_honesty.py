"""How much the choice of the final model flatters it, on random splits of many validation problems.

    python scripts/selection_honesty.py CONFIG [--output RUN] [--pool N] [--splits S] [--seed K] [--json FILE] [key=value …]

The run of the config is made, or continued, with N validation problems of every task. So every candidate for the final model
is evaluated once on all of them. Then the problems of every task are divided at random into two halves, S times: one half
serves as validation problems and the other as test problems. In each split

- the candidate of the best average on the validation half is chosen, as ``export.method: selected`` does among candidates other
  than the soup; its average there, with its 95 % interval, is compared with its average on the test half;
- the candidate of the best average on the train problems is chosen instead, and its train average is compared in the same way.

A choice is honest where the two averages differ by chance only. Both halves are samples. So without any bias the test average
lies within the 95 % interval of the validation average in about 83 % of the splits (both halves have the same spread, and
P(|Z| < 1.96 / √2) = 0.83), and the 95 % interval of the difference contains zero in about 95 %. The splits share their
problems, so they are not independent.

The candidates are the leading individuals of the search and, of CycleQD, the merge of equation 5. Soups are left out: the
members of a soup are chosen on validation problems, so every split would need evaluations of its own. So the result does not
hold for a selected model that is a soup: its validation average may be more optimistic.

The result is printed as a Markdown table, and written as JSON to ``RUN/tables/selection_honesty.json`` or FILE.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

import cycleqd_jax as cq
from cycleqd_jax.files import write_json
from cycleqd_jax.report.read import load_selection
from cycleqd_jax.statistics import Interval, mean_interval


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A candidate for the final model.

    Attributes:
        name: such as ``"elite 12"``.
        train: its average on the train problems.
        items: by task, the score of every problem of the pool.
    """

    name: str
    train: float
    items: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Split:
    """What one random split shows.

    Attributes:
        chosen: the candidate that was chosen on the validation half.
        validation: its average on the validation half.
        test: its average on the test half.
        low: lower end of the 95 % interval of ``validation`` − ``test``.
        high: upper end of that interval.
        inside: whether the test average lies within the interval of the validation average.
        on_train: the candidate of the best average on the train problems.
        on_train_test: its average on the test half.
        best_test: the highest average of any candidate on the test half.
    """

    chosen: str
    validation: Interval
    test: Interval
    low: float
    high: float
    inside: bool
    on_train: str
    on_train_test: float
    best_test: float


def candidates_of(folder: Path) -> list[Candidate]:
    """The candidates of a finished run that could be evaluated, in the order of its selection, without soups."""
    selection = load_selection(folder)
    if selection is None:
        raise cq.InputError(f"expected a finished selection in {folder}, got none; run the config with validation problems")
    run = cq.open_run(folder)
    averages = {one["id"]: one["average"] for one in run.individuals}
    rows = {row["method"]: row["score"] for row in run.results if (row["split"], row["task"]) == ("train", "average")}
    found = []
    for one in selection["candidates"]:
        if one["kind"] == "soup" or one["scores"] is None:
            continue
        is_merge = one["kind"] == "aggregate"
        name = "aggregate" if is_merge else f"elite {one['ids'][0]}"
        train = rows["cycleqd"] if is_merge else averages[one["ids"][0]]
        found.append(Candidate(name, train, {task: np.asarray(scores) for task, scores in one["items"].items()}))
    return found


def _first_best(values: Sequence[float | Fraction]) -> int:
    return max(range(len(values)), key=lambda i: values[i])  # the first of equals


def _average(items: Mapping[str, np.ndarray]) -> Fraction:
    """The mean over tasks of the mean over problems, exactly: equal averages must be equal."""
    means = [sum(map(Fraction, scores.tolist()), Fraction(0)) / len(scores) for scores in items.values()]
    return sum(means, Fraction(0)) / len(means)


def splits_of(candidates: Sequence[Candidate], splits: int, seed: int) -> list[Split]:
    """Random splits of the pool into halves; with an odd number of problems the test half has one more.

    The interval of the difference of two independent means follows from their intervals by the method of variance estimates
    recovery (Zou and Donner, 2008).
    """
    sizes = {task: len(scores) for task, scores in candidates[0].items.items()}
    if min(sizes.values()) < 2:
        raise cq.InputError(f"expected at least two problems of every task to split, got {sizes}; increase --pool")
    on_train = _first_best([round(one.train, 9) for one in candidates])
    found = []
    for split in range(splits):
        rng = np.random.default_rng([seed, split])
        orders = {task: rng.permutation(size) for task, size in sizes.items()}
        halves = [
            [{task: one.items[task][part(order)] for task, order in orders.items()} for one in candidates]
            for part in (lambda order: order[: len(order) // 2], lambda order: order[len(order) // 2 :])
        ]
        i = _first_best([_average(items) for items in halves[0]])
        tests = [float(_average(items)) for items in halves[1]]
        validation, test = (mean_interval([*half[i].values()]) for half in halves)
        difference = validation.mean - test.mean
        found.append(
            Split(
                candidates[i].name,
                validation,
                test,
                low=difference - math.hypot(validation.mean - validation.low, test.high - test.mean),
                high=difference + math.hypot(validation.high - validation.mean, test.mean - test.low),
                inside=validation.low <= test.mean <= validation.high,
                on_train=candidates[on_train].name,
                on_train_test=tests[on_train],
                best_test=max(tests),
            )
        )
    return found


def summary(candidates: Sequence[Candidate], splits: Sequence[Split]) -> dict[str, Any]:
    """JSON-ready; all averages are in [0, 1]. ``optimism`` is the mean difference between the two averages of a choice."""
    train = max(one.train for one in candidates)
    return {
        "candidates": [{"name": one.name, "train": one.train, "pool": float(_average(one.items))} for one in candidates],
        "problems": {task: len(scores) for task, scores in candidates[0].items.items()},
        "splits": [dataclasses.asdict(one) for one in splits],
        "inside": sum(one.inside for one in splits),
        "difference_contains_zero": sum(one.low <= 0 <= one.high for one in splits),
        "on_validation": {
            "optimism": float(np.mean([one.validation.mean - one.test.mean for one in splits])),
            "test": float(np.mean([one.test.mean for one in splits])),
        },
        "on_train": {
            "train": train,
            "optimism": float(np.mean([train - one.on_train_test for one in splits])),
            "test": float(np.mean([one.on_train_test for one in splits])),
        },
        "best_test": float(np.mean([one.best_test for one in splits])),
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The splits as a table, and what they say on average; in percent."""
    head = ["split", "chosen on validation", "validation", "95 % interval", "test", "chosen on train", "train", "test"]
    lines = ["| " + " | ".join(head) + " |", "|---:|---|---:|---|---:|---|---:|---:|"]
    train = found["on_train"]["train"]
    for number, one in enumerate(found["splits"], 1):
        validation = one["validation"]
        interval = f"[{100 * validation['low']:.1f}, {100 * validation['high']:.1f}]"
        left = [one["chosen"], f"{100 * validation['mean']:.1f}", interval, f"{100 * one['test']['mean']:.1f}"]
        right = [one["on_train"], f"{100 * train:.1f}", f"{100 * one['on_train_test']:.1f}"]
        lines.append("| " + " | ".join([str(number), *left, *right]) + " |")
    count, chosen, rival = len(found["splits"]), found["on_validation"], found["on_train"]
    pool = ", ".join(f"{size} of {task}" for task, size in found["problems"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"{len(found['candidates'])} candidates, problems: {pool}; half of them validate and half test.",
            f"The test average is within the interval of the validation average in {found['inside']} of {count} splits (about "
            f"83 % without bias), and the interval of the difference contains zero in {found['difference_contains_zero']}.",
            f"Chosen on validation: the choice is {100 * chosen['optimism']:+.1f} above its test average, which is "
            f"{100 * chosen['test']:.1f}.",
            f"Chosen on train: the choice is {100 * rival['optimism']:+.1f} above its test average, which is "
            f"{100 * rival['test']:.1f}.",
            f"The best candidate of every test half has {100 * found['best_test']:.1f}.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of a run on miniature problems, or on files that have enough problems")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of its keys")
    parser.add_argument("--output", help="the run folder; by default runs/NAME-honesty")
    parser.add_argument("--pool", type=int, default=400, help="validation problems of every task (400)")
    parser.add_argument("--splits", type=int, default=20, help="random splits (20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (0)")
    parser.add_argument("--json", type=Path, help="where the result is written")
    args = parser.parse_intermixed_args(arguments)  # overrides may follow options
    config = cq.load_config(args.config, args.overrides)
    sizes = [f"tasks.{i}.validation_size={args.pool}" for i in range(len(config.tasks))]
    output = args.output or f"runs/{config.name}-honesty"
    config = cq.load_config(args.config, [*args.overrides, *sizes, f"output={output}"])
    with cq.Run(config) as run:
        run.train()
        run.evolve()
        run.results()
    candidates = candidates_of(config.folder)
    found = summary(candidates, splits_of(candidates, args.splits, args.seed))
    write_json(args.json or config.folder / "tables" / "selection_honesty.json", found)
    print(markdown(found))


if __name__ == "__main__":
    main()
