"""The model ``cycleqd`` of lm-evaluation-harness against its model ``hf``: the same numbers, and the time of both.

    python scripts/bench_lm_eval.py --model DIR --data DIR [--tasks arc_challenge hellaswag] [--limit N] [--shots N]
        [--batch-size N] [--max-length N] [--json FILE] [--items FILE]

DIR of ``--model`` is a Hugging Face folder, for example of ``cycleqd fetch smollm2 DIR``. DIR of ``--data`` has the published
files as JSON Lines (:data:`FILES`). Both models get the same requests from lm-eval, in float32 on this machine's CPUs, in one
process, one after the other. ``cycleqd`` computes them twice: the first time compiles its programs. Loading is not counted.

It prints the largest difference of a log-likelihood, the problems with another choice, the accuracies and the seconds. It
needs the extra lm-eval, and PyTorch.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import platform
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

FILES = {
    "arc_challenge": "arc/arc_challenge_test.visible.jsonl",
    "arc_easy": "arc/arc_easy_test.visible.jsonl",
    "boolq": "boolq/boolq_val.visible.jsonl",
    "commonsenseqa": "commonsenseqa/csqa_dev.visible.jsonl",
    "hellaswag": "hellaswag/hellaswag_val_head1000.visible.jsonl",
    "gsm8k": "gsm8k/gsm8k_test.visible.jsonl",
}
"""The file of every task, below the folder of the data."""

LABELS = "(question.choices|map(attribute='label')|list).index(answerKey)"
LISTED = "{% for one in question.choices %}{{one.label}}. {{one.text}}\n{% endfor %}"
ARC = {
    "doc_to_text": "Question: {{question.stem}}\nAnswer:",
    "doc_to_choice": "{{question.choices|map(attribute='text')|list}}",
    "doc_to_target": f"{{{{{LABELS}}}}}",
}
PROMPTS: dict[str, dict[str, Any]] = {
    "arc_challenge": ARC,
    "arc_easy": ARC,
    "boolq": {
        "doc_to_text": "{{passage}}\nQuestion: {{question}}?\nAnswer:",
        "doc_to_choice": ["no", "yes"],
        "doc_to_target": "{{1 if label == 'true' else 0}}",
    },
    "commonsenseqa": {
        "doc_to_text": f"Question: {{{{question.stem}}}}\n{LISTED}Answer:",
        "doc_to_choice": "{{question.choices|map(attribute='label')|list}}",
        "doc_to_target": f"{{{{{LABELS}}}}}",
    },
    "hellaswag": {"doc_to_text": "{{context}}", "doc_to_choice": "{{endings}}", "doc_to_target": "{{label}}"},
    "gsm8k": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Question:"], "max_gen_toks": 64, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}
CHOICE_METRICS = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]


def write_tasks(folder: Path, data: Path, names: Sequence[str], shots: int) -> None:
    """A YAML file for each task, in the form of lm-eval."""
    for name in names:
        task = {
            "task": f"local_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str((data / FILES[name]).resolve())}},
            "test_split": "test",
            "fewshot_split": "test",
            "fewshot_config": {"sampler": "first_n"},
            "num_fewshot": shots,
            "output_type": "multiple_choice",
            "metric_list": CHOICE_METRICS,
            **PROMPTS[name],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")


def make(kind: str, model: str, batch_size: int, max_length: int | None) -> Any:
    """A model of lm-eval's registry."""
    from lm_eval.api.registry import get_model

    length = "" if max_length is None else f",max_length={max_length}"
    arguments = f"pretrained={model},dtype=float32{length}"
    return get_model(kind).create_from_arg_string(arguments, {"batch_size": batch_size, "device": "cpu"})


def evaluate(model: Any, folder: Path, names: Sequence[str], limit: int | None) -> tuple[dict[str, Any], float]:
    """lm-eval's results, and the seconds that the model took for all requests."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    seconds = 0.0
    for method in ("loglikelihood", "generate_until"):
        plain = getattr(type(model), method)

        def timed(requests: Any, *given: Any, _plain: Any = plain, **options: Any) -> Any:
            nonlocal seconds
            start = time.perf_counter()
            try:
                return _plain(model, requests, *given, **options)
            finally:
                seconds += time.perf_counter() - start

        setattr(model, method, timed)
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[f"local_{name}" for name in names],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        limit=limit,
        log_samples=True,
        bootstrap_iters=0,
    )
    assert found is not None
    return found, seconds


def difference(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> dict[str, Any]:
    """How the answers to the requests of a task differ."""
    pairs = [
        (one, other)
        for a, b in zip(ours["samples"][f"local_{name}"], theirs["samples"][f"local_{name}"], strict=True)
        for one, other in zip(a["filtered_resps"], b["filtered_resps"], strict=True)
    ]
    if PROMPTS[name].get("output_type") == "generate_until":
        return {"requests": len(pairs), "different_texts": sum(one != other for one, other in pairs)}
    items = answers(ours, theirs, name)
    choices = [tuple(max(range(len(a)), key=a.__getitem__) for a in (one["cycleqd"], one["hf"])) for one in items]
    other = [one["hf"][b] - one["hf"][a] for one, (a, b) in zip(items, choices, strict=True) if a != b]
    return {
        "requests": len(pairs),
        "largest_difference": max((abs(float(one[0]) - float(other[0])) for one, other in pairs), default=0.0),
        "different_greedy": sum(str(one[1]) != str(other[1]) for one, other in pairs),
        "problems": len(items),
        "different_choices": len(other),
        "largest_gap_of_different_choices": max(other, default=0.0),
    }


def answers(ours: dict[str, Any], theirs: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The number, the target and both models' answers of every problem: log-likelihoods of the choices, or texts."""

    def of(sample: dict[str, Any]) -> list[Any]:
        found = sample["filtered_resps"]
        return list(found) if PROMPTS[name].get("output_type") == "generate_until" else [float(one[0]) for one in found]

    both = zip(ours["samples"][f"local_{name}"], theirs["samples"][f"local_{name}"], strict=True)
    return [{"problem": a["doc_id"], "target": str(a["target"]), "cycleqd": of(a), "hf": of(b)} for a, b in both]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--tasks", nargs="+", choices=[*FILES], default=["arc_challenge", "hellaswag"], metavar="TASK")
    parser.add_argument("--limit", type=int, metavar="N", help="the first problems of every file; all by default")
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--items", type=Path, metavar="FILE", help="also write the answers to every problem, as .json.gz")
    args = parser.parse_args(argv)

    from cycleqd_jax.lm_eval import register

    register()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tasks(folder, args.data, args.tasks, args.shots)
        model = make("cycleqd", args.model, args.batch_size, args.max_length)
        first = evaluate(model, folder, args.tasks, args.limit)[1]
        ours, seconds = evaluate(model, folder, args.tasks, args.limit)
        theirs, hf_seconds = evaluate(make("hf", args.model, args.batch_size, args.max_length), folder, args.tasks, args.limit)
    found: dict[str, Any] = {
        "machine": platform.machine(),
        "model": args.model,
        "limit": args.limit,
        "shots": args.shots,
        "batch_size": args.batch_size,
        "seconds": {"cycleqd": seconds, "cycleqd, with compilation": first, "hf": hf_seconds},
        "ratio": hf_seconds / seconds,
        "tasks": {},
    }
    for name in args.tasks:
        metrics = {
            key.partition(",")[0]: [value, theirs["results"][f"local_{name}"][key]]
            for key, value in ours["results"][f"local_{name}"].items()
            if isinstance(value, float) and "stderr" not in key
        }
        found["tasks"][name] = difference(ours, theirs, name) | {"metrics": metrics}
        print(f"{name}: {found['tasks'][name]}")
    print(
        f"cycleqd {seconds:.1f} s ({first:.1f} s with compilation), hf {hf_seconds:.1f} s: "
        f"cycleqd is {found['ratio']:.2f} times as fast"
    )
    if args.items:
        items = {name: answers(ours, theirs, name) for name in args.tasks}
        args.items.write_bytes(gzip.compress(json.dumps(items).encode("utf-8"), mtime=0))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


if __name__ == "__main__":
    main()
