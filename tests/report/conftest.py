"""Run folders of a made-up search: a seeded CycleQD on a few coefficients, without the package's own searcher."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest


def write_run(
    folder: Path,
    tasks: tuple[str, ...] = ("mbpp", "dbbench", "os_interaction"),
    generations: int = 120,
    bins: int = 15,
    seed: int = 0,
    batch: int = 1,
    items: int = 40,
    quarantine: float = 0.03,
) -> Path:
    """Writes config.yaml, grid.json, history.jsonl and tables/results.json as a run would."""
    rng = np.random.default_rng(seed)
    k = len(tasks)
    folder.mkdir(parents=True, exist_ok=True)
    skill = np.where(np.eye(k) > 0, 1.6, rng.uniform(-0.9, 0.1, (k, k)))  # of expert i on task j
    difficulty = rng.normal(0.3, 1.0, (k, items))

    def evaluate(a: np.ndarray) -> list[list[float]]:
        strength = a @ skill + 0.55 * (1 - (a**2).sum())  # mixing helps a little
        return [(strength[j] + rng.normal(0, 0.25, items) > difficulty[j]).astype(float).tolist() for j in range(k)]

    coefficients, scores, lines = [], [], []

    def record(a: np.ndarray, **fields) -> None:
        index = len(lines)
        bad = fields["generation"] >= 0 and rng.random() < quarantine
        results = evaluate(a)
        values = [float(np.mean(r)) for r in results]
        lines.append(
            {
                "id": index,
                **fields,
                "scores": None if bad else dict(zip(tasks, values)),
                "error": "InfraError: the <b>sandbox</b> did not start" if bad else None,
                "items": {} if bad else dict(zip(tasks, results)),
                "seconds": {"express": float(rng.uniform(0.01, 0.03)), "evaluate": float(rng.gamma(4, 0.1))},
            }
        )
        coefficients.append(a)
        scores.append(None if bad else values)

    for i in range(k):
        record(np.eye(k)[i], generation=-1, expert=tasks[i], active=None, parents=[-1, -1], omega=None, key=None)
    experts = np.array(scores)
    low, high = 0.85 * experts.min(0), 1.15 * experts.max(0)
    bounds = dict(zip(tasks, np.stack([low, high], 1).tolist()))
    (folder / "grid.json").write_text(json.dumps({"tasks": tasks, "bins": bins, "bounds": bounds}))

    for generation in range(generations):
        active = generation % k
        elites: dict[tuple, int] = {}
        for index, f in enumerate(scores):
            if f is not None:
                cell = tuple(
                    int(np.clip((f[j] - low[j]) / (high[j] - low[j]) * bins, 0, bins - 1)) for j in range(k) if j != active
                )
                if cell not in elites or f[active] > scores[elites[cell]][active]:
                    elites[cell] = index
        for _ in range(batch):
            p = rng.choice(list(elites.values()), 2, replace=len(elites) < 2).tolist()
            omega = rng.normal(1.0, 0.4, 2)
            weights = omega / omega.sum()
            child = weights @ np.stack([coefficients[p[0]], coefficients[p[1]]])
            child = np.clip(child, -0.5, 1.5) + 0.15 * rng.uniform(0, 1) * np.eye(k)[active]
            record(
                child, generation=generation, expert=None, active=tasks[active], parents=p, omega=omega.tolist(),
                key=rng.integers(0, 2**32, 2).tolist(),
            )  # fmt: skip
    (folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def row(a: np.ndarray) -> dict:
        splits = {}
        for split in ("train", "test"):
            values = [float(np.mean(r)) for r in evaluate(a)]
            splits[split] = {**dict(zip(tasks, values)), "average": float(np.mean(values))}
        return splits

    best = max((i for i in range(len(lines)) if scores[i] is not None), key=lambda i: sum(scores[i]))
    methods = {"base": row(-0.5 * np.ones(k) / k)}
    methods |= {f"expert/{tasks[i]}": row(np.eye(k)[i]) for i in range(k)}
    methods |= {
        "finetune_all": row(np.full(k, 0.5)),
        "uniform_merge": row(np.full(k, 1 / k)),
        "cycleqd": row(coefficients[best]),
    }
    (folder / "tables").mkdir(exist_ok=True)
    (folder / "tables" / "results.json").write_text(json.dumps({"methods": methods, "seed": seed}))
    (folder / "config.yaml").write_text(
        f"seed: {seed}\nsearch:\n  generations: {generations}\n  batch: {batch}\ngrid:\n  bins: {bins}\n"
        "versions:\n  jax: 0.10.2\n  cycleqd_jax: 0.1.0\n  'python': '3.11'\n"
    )
    return folder


def write_transcripts(folder: Path, tasks: tuple[str, ...], text: str = "def f(x):\n    return x + 1") -> None:
    """Some conversations, one file per task."""
    (folder / "transcripts").mkdir(exist_ok=True)
    for task in tasks:
        lines = []
        for index in range(6):
            messages = [
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": f"Problem {index} of {task}"},
                {"role": "assistant", "content": text},
            ]
            score, reason = (1.0, "passed") if index % 2 else (0.0, f"assertion 2 failed: {text}")
            line = {"task": task, "split": "test", "method": "cycleqd", "index": index}
            lines.append(line | {"score": score, "reason": reason, "messages": messages})
        (folder / "transcripts" / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def undrawn(monkeypatch):
    """Rendering is most of the time; what the page says does not depend on it."""
    monkeypatch.setattr("cycleqd_jax.report.plots.render", lambda figure, kind, theme="light": b"<svg/>")


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run(name="run", **options)`` writes a run folder and returns it."""

    def make(name: str = "run", **options) -> Path:
        return write_run(tmp_path / name, **options)

    return make


@pytest.fixture
def add_transcripts() -> Callable[..., None]:
    """See :func:`write_transcripts`."""
    return write_transcripts
