"""A whole run whose tasks are scored by log-likelihood and by exact match: search, results, report, export, comparison."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import cycleqd_jax as cq
from cycleqd_jax import lm_eval
from cycleqd_jax.cli import main
from cycleqd_jax.engine import TextScorer
from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.tokenizer import train_tiny_tokenizer
from cycleqd_jax.tasks import TaskOptions, make_task

from ..tasks.helpers import FakeSandbox

pytestmark = pytest.mark.timeout(1800)  # the fixture is a whole run

WORDS = ("rain", "the sky", "dough", "a stone", "wood", "ice")


def arc(number):
    texts = [WORDS[(number + i) % 6] for i in range(3 + number % 2)]
    choices = [{"text": text, "label": "ABCD"[i]} for i, text in enumerate(texts)]
    return {"id": f"a{number}", "question": {"stem": f"What is {number}?", "choices": choices}, "answerKey": "ABC"[number % 3]}


def gsm8k(number):
    return {
        "id": f"g{number}",
        "question": f"What is {number} + 1?",
        "answer": f"{number} + 1 = {number + 1}\n#### {number + 1}",
    }


def write(path, records):
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run, and its config."""
    folder = tmp_path_factory.mktemp("likelihood")
    tokenizer = train_tiny_tokenizer([f"Question: What is {word}?\nAnswer: #### 3" for word in WORDS] * 4, 320)
    config = llama.LlamaConfig(tokenizer.vocab_size, 32, 48, 2, 4, 2, 8, max_position_embeddings=256, initializer_range=0.3)
    base = llama.init_params(config, jax.random.key(0))
    for number, name in enumerate(("base", "arc", "words", "sums")):
        other = llama.init_params(config, jax.random.key(number))
        params = jax.tree.map(lambda a, b, n=number: a + jnp.float32(0.3 * (n > 0)) * (b - a), base, other)
        hf.save(folder / name, config, params, tokenizer=tokenizer)
    sizes = {"train_size": 6, "validation_size": 4, "test_size": 6, "max_new_tokens": 6}
    shots = {"shots": 2, "shots_file": write(folder / "shots.jsonl", [arc(n) for n in (100, 101)])}
    data = write(folder / "arc.jsonl", [arc(n) for n in range(24)])
    given = {
        "name": "likelihood",
        "output": str(folder / "run"),
        "cache": str(folder / "cache"),
        "tasks": [
            {"name": "arc", "kind": "arc", "train": data, "options": {"metric": "acc_norm", **shots}, **sizes},
            {"name": "words", "kind": "commonsenseqa", "train": data, **sizes},
            {"name": "sums", "kind": "gsm8k", "train": write(folder / "g.jsonl", [gsm8k(n) for n in range(24)]), **sizes},
        ],
        "model": {"base": str(folder / "base"), "experts": {n: str(folder / n) for n in ("arc", "words", "sums")}},
        "search": {"generations": 3, "batch_size": 2},
        "export": {"elites": 2},
        "engine": {"slots": 4, "max_len": 192},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
    assert main(["run", str(folder / "config.yaml")]) == 0
    return folder


@pytest.mark.e2e
def test_the_scores_are_those_of_the_harness_s_rule(run):
    journal = [json.loads(line) for line in (run / "run" / "history.jsonl").read_text("utf-8").splitlines()]
    assert {len(one["items"]["arc"]) for one in journal} == {6}
    last = journal[-1]["id"]
    model = lm_eval.load(pretrained=None, run=str(run / "run"), child=last, dtype=None)
    assert main(["export", str(run / "run"), "--child", str(last)]) == 0
    exported = hf.load(run / "run" / "exports" / f"child-{last}")[1]
    for ours, theirs in zip(jax.tree.leaves(model.params), jax.tree.leaves(exported), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    scorer = TextScorer(lm_eval.make_engine(model, slots=3, max_length=192), model.tokenizer)
    settings = yaml.safe_load((run / "config.yaml").read_text("utf-8"))["tasks"][0]
    task = make_task("arc", TaskOptions(FakeSandbox(), "arc", data=settings["train"]), **settings["options"])
    found = []
    for question in task.questions("train")[:6]:
        found.append(task.outcome(question, scorer.score([(question.context, choice) for choice in question.choices])))
    assert [one.score.value for one in found] == journal[-1]["items"]["arc"]


@pytest.mark.e2e
def test_results_report_and_comparison(run, capsys):
    results = json.loads((run / "run" / "tables" / "results.json").read_text("utf-8"))
    assert {"arc", "words", "sums", "average"} <= set(results["methods"]["cycleqd"]["test"])
    assert (run / "run" / "report.html").exists()
    assert len(cq.open_run(run / "run").archives["arc"]) >= 1
    config = str(run / "config.yaml")
    assert main(["evaluate", config, "--model", str(run / "base")]) == 0
    assert "train: arc" in capsys.readouterr().out
    assert (
        main(["compare", config, "--methods", "cycleqd,qd", "--seeds", "0", "--budget", "9", "--output", str(run / "compared")])
        == 0
    )
    assert "arc   words   sums" in capsys.readouterr().out
