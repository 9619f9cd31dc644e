"""Finished runs of made-up methods: what a comparison reads of a run folder, without a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

TASKS = ("a", "b")


def write_finished(
    folder: Path,
    search: str,
    seed: int,
    *,
    skill: float = 0.5,
    problems: int = 24,
    individuals: int = 9,
    selects: bool = False,
    test_digest: str | None = None,
) -> Path:
    """Writes the run folder of a search method. Rows that are shared depend on the seed, the method's own also on ``skill``."""
    rng = np.random.default_rng(seed)
    difficulty = {split: {task: rng.random(problems) for task in TASKS} for split in ("test", "train")}
    own = [search, *([f"{search}_selected"] if selects else [])]
    levels = {"base": 0.1, "expert/a": 0.4, "expert/b": 0.4, "uniform_merge": 0.45}
    levels |= {row: skill + 0.1 * i for i, row in enumerate(own)}
    items = {
        row: {
            split: {task: (value < level).astype(float).tolist() for task, value in tasks.items()}
            for split, tasks in difficulty.items()
        }
        for row, level in levels.items()
    }
    methods = {row: {split: _means(tasks) for split, tasks in splits.items()} for row, splits in items.items()}
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    (folder / "tables" / "items.json").write_text(json.dumps(items))
    results = {"methods": methods, "found": own, "tasks": TASKS, "seed": seed}
    (folder / "tables" / "results.json").write_text(json.dumps(results))
    grid = {"tasks": TASKS, "bins": 3, "bounds": {task: [0, 1] for task in TASKS}, "method": search}
    (folder / "grid.json").write_text(json.dumps(grid))
    digests = {f"{task}/{split}": f"{split}-{seed}" for task in TASKS for split in ("test", "train")}
    digests |= {} if test_digest is None else {f"{task}/test": test_digest for task in TASKS}
    (folder / "inputs.json").write_text(json.dumps(digests | {"versions": {}}))
    lines = []
    for i in range(individuals):
        scores = {task: float(rng.random() * (skill if i >= len(TASKS) else 0.4)) for task in TASKS}
        one = {"id": i, "generation": -1 if i < len(TASKS) else 0, "expert": TASKS[i] if i < len(TASKS) else None}
        one |= {"active": None, "parents": [-1, -1], "omega": None, "key": None, "scores": scores, "error": None}
        lines.append(json.dumps({**one, "items": {}, "seconds": {}}))
    (folder / "history.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def _means(tasks: dict[str, list[float]]) -> dict[str, float]:
    means = {task: float(np.mean(scores)) for task, scores in tasks.items()}
    return {**means, "average": float(np.mean([*means.values()]))}
