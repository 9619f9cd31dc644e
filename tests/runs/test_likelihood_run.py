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
from cycleqd_jax.runs.folder.models import RunModels
from cycleqd_jax.serve import RunCatalog, UnknownModel
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
    for number, name in enumerate(("base", "arc", "words", "sums", "later")):
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


def test_the_server_offers_the_models_of_the_run(run):
    with RunModels(run / "run", lambda *_: None, lambda *_: None) as models:
        models.prepare()
        catalog = RunCatalog(models)
        elites = cq.open_run(run / "run").archives["arc"]
        named = {one.id for one in catalog.entries()}
        assert {"final", "base", "expert:arc", "expert:words", "expert:sums"} <= named
        assert {f"child:{elite['id']}" for elite in elites} <= named
        cell = ",".join(map(str, elites[-1]["cell"]))
        assert catalog.resolve(f"elite:arc/{cell}") == catalog.resolve(f"child:{elites[-1]['id']}")
        for name in ("nothing", "child:99999", "child:x", "expert:x", "elite:arc/99,99", "elite:arc", "child:00"):
            with pytest.raises(UnknownModel, match="expected"):
                catalog.resolve(name)
        for name, folder in (("final", "run/model"), ("base", "base"), ("expert:words", "words")):
            served = jax.tree.leaves(catalog.express(catalog.resolve(name))[0])
            for ours, theirs in zip(served, jax.tree.leaves(hf.load(run / folder)[1]), strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_a_suite_scores_all_rows(run, tmp_path, capsys):
    tasks = [{"name": "other", "kind": "commonsenseqa", "data": write(tmp_path / "other.jsonl", [arc(n) for n in range(70)])}]
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump({"name": "others", "tasks": tasks}), encoding="utf-8")
    command = ["evaluate", str(run / "config.yaml"), "--suite", str(suite)]
    assert main(command) == 0
    assert "share of the base model's score" in capsys.readouterr().out
    file = run / "run" / "tables" / "suite-others.json"
    record = json.loads(file.read_text("utf-8"))
    assert [*record["rows"]] == [*json.loads((run / "run" / "tables" / "results.json").read_text("utf-8"))["methods"]]
    assert {len(row["items"]["other"]) for row in record["rows"].values()} == {70}
    # Rows that are there are not scored again.
    record["rows"]["base"]["scores"]["other"] = 0.125
    del record["rows"]["uniform_merge"]
    file.write_text(json.dumps(record), encoding="utf-8")
    assert main(command) == 0
    again = json.loads(file.read_text("utf-8"))["rows"]
    for other in file.parent.glob("suite-*"):  # the run belongs to all tests
        other.unlink()
    assert again["base"]["scores"]["other"] == 0.125
    assert again["uniform_merge"]["scores"]


def test_a_fourth_task_extends_the_run(run, tmp_path):
    new, data = tmp_path / "new", write(tmp_path / "later.jsonl", [arc(n) for n in range(200, 224)])
    given = ["kind=arc", f"train={data}", "train_size=6", "validation_size=4", "test_size=6"]
    command = ["extend", str(run / "run"), "--task", "later", "--expert", str(run / "later"), "--generations", "1"]
    assert main([*command, "--output", str(new), *(f"tasks.later.{one}" for one in given)]) == 0
    old = {one["id"]: one for one in cq.open_run(run / "run").individuals}
    found = {one["id"]: one for one in cq.open_run(new).individuals}
    assert len(found) == len(old) + 1 + 2  # the new expert, and two children
    scored = 0
    for identity, one in old.items():
        mine = found[identity if identity < 3 else identity + 1]
        if mine["arc"] == mine["arc"]:  # not NaN
            scored += 1
            assert [mine[task] for task in ("arc", "words", "sums")] == [one[task] for task in ("arc", "words", "sums")]
    assert scored > 3  # experts, and elites
    assert main(["verify", str(new)]) == 0


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
