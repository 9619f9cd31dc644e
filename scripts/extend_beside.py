"""A finished run that takes another task, beside a run that had all tasks from the start, at equal evaluations.

    python scripts/extend_beside.py [CONFIG] [--task NAME] [--folder DIR] [--json FILE] [key=value …]

CONFIG is a config without the new task (``configs/quickstart.yaml``), and NAME is that task (``humaneval``). Keys of both
follow as overrides. Both runs have the same base and the same experts, which are trained first, with all tasks. Then

1. a run without the new task is made (``DIR/before``);
2. it is extended by the new task (``DIR/extended``), as ``cycleqd extend`` does, by as many generations as it had;
3. a run with all tasks (``DIR/from_start``) may score individuals on as many problems as both of these runs did together.

A problem counts for every individual that is scored on it, so an old elite counts with the problems of the new task only.
Every part continues where it stopped. The table has the scores on train and test problems; it is also written as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cycleqd_jax as cq
from cycleqd_jax.config import to_dict
from cycleqd_jax.files import write_json
from cycleqd_jax.runs import extend
from cycleqd_jax.search import Journal

ROWS = ("cycleqd", "cycleqd_best_elite", "cycleqd_selected")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the command; returns what it writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", default="configs/quickstart.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--task", default="humaneval", metavar="NAME")
    parser.add_argument("--folder", type=Path, default=Path("runs/extend_beside"), metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: DIR/result.json")
    args = parser.parse_args(argv)
    new = [text for text in args.overrides if text.startswith(f"tasks.{args.task}.")]
    old = [text for text in args.overrides if text not in new]
    before = cq.load_config(args.config, old)
    whole = to_dict(before) | {"baselines": [], "output": str(args.folder / "models")}
    whole["tasks"].append({"name": args.task})
    config = cq.load_config(whole, new)
    with cq.Run(config) as run:
        run.train()
        given = {name: str(folder) for name, folder in run.model_folders.items()}
    names = config.task_names
    model = dataclasses.replace(config.model, base=given["base"], experts={name: given[f"expert/{name}"] for name in names})

    def write_run(tree: dict[str, Any], name: str, tasks: Sequence[str]) -> None:
        tree |= {"name": name, "output": str(args.folder / name)}
        tree["tasks"] = [one for one in tree["tasks"] if one["name"] in tasks]
        tree["model"] = to_dict(model) | {"experts": {task: given[f"expert/{task}"] for task in tasks}}
        finish(cq.load_config(tree))

    write_run(to_dict(config), "before", names[:-1])
    finish(
        extend(
            args.folder / "before",
            args.folder / "extended",
            task=args.task,
            expert=given[f"expert/{args.task}"],
            overrides=new,
        )
    )
    spent = {name: scored(args.folder / name) for name in ("before", "extended")}
    tree = to_dict(config)
    tree["search"] |= {"budget_items": sum(spent.values()), "generations": 10**6}
    write_run(tree, "from_start", names)
    spent["from_start"] = scored(args.folder / "from_start")
    found = {"tasks": list(names), "problems": spent, "scores": {}}
    for name in ("before", "extended", "from_start"):
        for one in cq.open_run(args.folder / name).results:
            if one["method"] in (*ROWS, *(f"expert/{task}" for task in names)):
                found["scores"].setdefault(f"{name}: {one['method']}", {}).setdefault(one["split"], {})[one["task"]] = one[
                    "score"
                ]
    write_json(args.json or args.folder / "result.json", found)
    print(table(found))
    return found


def finish(config: cq.RunConfig) -> None:
    """Runs the search of a config, and measures its models."""
    with cq.Run(config) as run:
        run.evolve()
        run.results()
        run.report()


def scored(folder: Path) -> int:
    """The problems that individuals of a run were scored on in this run."""
    journal, carried = Journal(folder / "history.jsonl", read_only=True), {}
    if (folder / "origin").is_dir():
        old = Journal(folder / "origin" / "history.jsonl", read_only=True)
        experts = [sum(journal[i].expert is not None for i in journal.ids()), sum(old[i].expert is not None for i in old.ids())]
        carried = {(i if i < experts[1] else i - experts[1] + experts[0]): old[i].problem_count for i in old.ids()}
    total = 0
    for identity in journal.ids():
        items = journal[identity].problem_count
        total += max(items - carried.get(identity, 0), 0)
    return total


def table(found: dict[str, Any]) -> str:
    """The result as a Markdown table."""
    tasks = [*found["tasks"], "average"]
    lines = [f"Problems scored in the search: {found['problems']}.", ""]
    lines += ["| run: model | split | " + " | ".join(tasks) + " |", "|---|---|" + "---|" * len(tasks)]
    for row, splits in found["scores"].items():
        for split, scores in splits.items():
            shown = ["–" if scores.get(task) is None else f"{scores[task]:.3f}" for task in tasks]
            lines.append(f"| {row} | {split} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
