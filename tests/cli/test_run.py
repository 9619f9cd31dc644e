"""The whole loop through the command line, small but real: trained models, executed replies, files on disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import yaml

import cycleqd_jax as cq
from cycleqd_jax.cli import main

from .conftest import TASKS, history, kill_at, small_config, write_config

pytestmark = pytest.mark.e2e

METHODS = {
    "base",
    *(f"expert/{t}" for t in TASKS),
    "finetune_all",
    "uniform_merge",
    "cycleqd",
    "cycleqd_best_elite",
    "cycleqd_soup",
    "cycleqd_selected",
    "ties",
    "dare_ties",
}


def test_run_leaves_everything(finished):
    run = finished / "run"
    for name in ("config.yaml", "history.jsonl", "grid.json", "checkpoints", "model", "report.html", "figures", "transcripts"):
        assert (run / name).exists(), name
    results = json.loads((run / "tables" / "results.json").read_text())
    assert set(results["methods"]) == METHODS
    for scores in results["methods"].values():
        for split in ("train", "test"):
            values = [scores[split][task] for task in TASKS]
            assert all(0 <= value <= 1 for value in values)
            assert scores[split]["average"] == pytest.approx(np.mean(values))
    lines = history(run)
    assert len({tuple(line["scores"].values()) for line in lines}) > 3, "scores so alike that no test here could fail"
    assert [line["id"] for line in lines] == list(range(3 + 4 * 2))
    assert [line["expert"] for line in lines[:3]] == list(TASKS)
    assert [line["active"] for line in lines[3:]] == [TASKS[t % 3] for t in range(4) for _ in range(2)]
    assert all(len(line["items"][task]) == 8 for line in lines for task in TASKS)
    assert "versions" in yaml.safe_load((run / "config.yaml").read_text())
    card = (run / "model" / "README.md").read_text()
    meta = yaml.safe_load(card.split("---")[1])
    assert meta["tags"][0] == "merge"
    assert "base_model" not in meta  # the models are of this machine, and the hub takes its own repositories only
    assert all(f"| expert/{task} |" in card for task in TASKS)
    assert "by the average on 24 validation problems" in card
    assert "| 95 % interval | CycleQD, selected above |" in card


def test_the_final_model_is_the_best_on_validation(finished):
    run = cq.open_run(finished / "run")
    best = max(run.selection, key=lambda one: (one["average"], one["kind"] != "soup"))
    (chosen,) = [one for one in run.selection if one["chosen"]]
    assert chosen["average"] == pytest.approx(best["average"])
    assert [one["kind"] for one in run.selection[:4]] == ["aggregate", "elite", "elite", "elite"]
    elites = {one["ids"][0]: one for one in run.selection if one["kind"] == "elite"}
    averages = [next(one["average"] for one in run.individuals if one["id"] == identity) for identity in elites]
    assert averages == sorted(averages, reverse=True)
    results = json.loads((finished / "run" / "tables" / "results.json").read_text())
    assert next(iter(elites)) == results["best_elite"]
    twin = {"aggregate": "cycleqd", "soup": "cycleqd_soup"}.get(chosen["kind"])
    if chosen["ids"] == (results["best_elite"],):
        twin = "cycleqd_best_elite"
    if twin is not None:
        assert results["methods"]["cycleqd_selected"] == results["methods"][twin]
        assert not list((finished / "run" / "transcripts").glob("cycleqd_selected-*"))
    assert results["selected"]["selection"]["average"] == chosen["average"]
    page = (finished / "run" / "report.html").read_text()
    assert "Candidates for the final model" in page
    assert "CycleQD, selected" in page


def test_run_again_changes_nothing(finished, capsys):
    files = {path: path.read_bytes() for path in (finished / "run").rglob("*.json*") if "checkpoints" not in str(path)}
    assert main(["run", str(finished / "config.yaml")]) == 0
    assert {path: path.read_bytes() for path in files} == files
    assert "CycleQD" in capsys.readouterr().out


def test_the_exported_model_is_what_transformers_loads(finished):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from cycleqd_jax.models import llama
    from cycleqd_jax.models import tokenizer as chat
    from cycleqd_jax.models.files import hf

    folder = finished / "run" / "model"
    config, params = hf.load(folder)
    messages = [{"role": "user", "content": "How many files are there?"}]
    ids = chat.ChatTokenizer.load(folder).encode(messages)
    assert AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == ids
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor([ids])).logits[0].numpy()
    ours = llama.forward(params, config, np.asarray([ids]))
    np.testing.assert_allclose(np.asarray(ours[0]), theirs, atol=1e-4, rtol=0)


def test_the_exported_model_scores_as_in_the_table(finished, capsys):
    model = str(finished / "run" / "model")
    assert main(["evaluate", str(finished / "config.yaml"), "--model", model, "sandbox.workers=2"]) == 0
    out = capsys.readouterr().out
    table = json.loads((finished / "run" / "tables" / "results.json").read_text())["methods"]["cycleqd_selected"]
    for split in ("train", "test"):
        assert f"{split}: " + ", ".join(f"{t} {table[split][t]:.3f}" for t in TASKS) in out


def test_killed_at_any_time_it_ends_the_same(finished, trained, compiled):
    config = write_config(trained)
    for survived in (2, 8):  # while experts are evaluated, and after a checkpoint
        kill_at(["evolve", str(config)], trained / "run" / "history.jsonl", survived, compiled, seconds=120)
    assert len(history(trained / "run")) < 3 + 4 * 2
    assert main(["run", str(config)]) == 0
    assert history(trained / "run") == history(finished / "run")
    for name in ("tables/results.json", "tables/selection.json", "grid.json", "model/model.safetensors"):
        assert (trained / "run" / name).read_bytes() == (finished / "run" / name).read_bytes()


def test_more_generations(finished, trained):
    """A run that goes on for more generations is the run that had as many from the beginning, measurement and all."""
    config = str(write_config(trained))
    assert main(["evaluate", config, "search.generations=3"]) == 0
    table = (trained / "run" / "tables" / "results.json").read_text()
    assert main(["evaluate", config]) == 0
    assert history(trained / "run") == history(finished / "run")
    tables = [(folder / "run" / "tables" / "results.json").read_text() for folder in (trained, finished)]
    assert tables[0] == tables[1] != table
    assert yaml.safe_load((trained / "run" / "config.yaml").read_text())["search"]["generations"] == 4


def test_one_thread_finds_the_same_archives(finished, trained):
    config = write_config(trained)
    code = "import os, sys; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from cycleqd_jax.cli import main"
    command = [sys.executable, "-c", f"{code}; sys.exit(main(['evolve', {str(config)!r}, 'sandbox.workers=1']))"]
    shutil.rmtree(trained / "cache" / "basis")  # so that the experts are decomposed on one core too
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stderr
    assert history(trained / "run") == history(finished / "run")
    assert main(["export", str(config)]) == 0
    assert (trained / "run/model/model.safetensors").read_bytes() == (finished / "run/model/model.safetensors").read_bytes()


def test_the_best_elite_is_exported(finished, trained, capsys):
    config = write_config(trained)
    shutil.copytree(finished / "run", trained / "run")
    assert main(["export", str(config), "--best-elite"]) == 0
    folder = trained / "run" / "best_elite"
    assert f"model: {folder}" in capsys.readouterr().out
    results = json.loads((trained / "run" / "tables" / "results.json").read_text())
    card = (folder / "README.md").read_text()
    assert f"individual {results['best_elite']}, the elite with the highest average" in card
    assert "| archive |" not in card
    selected = (trained / "run" / "model" / "model.safetensors").read_bytes()
    same = results["methods"]["cycleqd_selected"] == results["methods"]["cycleqd_best_elite"]
    assert same or (folder / "model.safetensors").read_bytes() != selected
    assert main(["evaluate", str(config), "--model", str(folder)]) == 0
    row = results["methods"]["cycleqd_best_elite"]["test"]
    assert "test: " + ", ".join(f"{t} {row[t]:.3f}" for t in TASKS) in capsys.readouterr().out


@pytest.mark.parametrize("method", ["aggregate", "soup", "best_elite"])
def test_the_method_of_export_decides(finished, trained, capsys, method):
    config = write_config(trained)
    shutil.copytree(finished / "run", trained / "run")
    before = (trained / "run" / "tables" / "results.json").read_bytes()
    assert main(["export", str(config), f"export.method={method}"]) == 0
    assert (trained / "run" / "tables" / "results.json").read_bytes() == before
    card = (trained / "run" / "model" / "README.md").read_text()
    assert ("| archive |" in card) == (method == "aggregate")
    assert "The model was chosen" not in card
    assert main(["evaluate", str(config), "--model", str(trained / "run" / "model"), "export.method=aggregate"]) == 0
    row = json.loads(before)["methods"]["cycleqd" if method == "aggregate" else f"cycleqd_{method}"]["test"]
    assert "test: " + ", ".join(f"{t} {row[t]:.3f}" for t in TASKS) in capsys.readouterr().out


def test_a_finished_run_of_a_version_that_did_not_select_is_measured_again(finished, trained):
    config = write_config(trained)
    shutil.copytree(finished / "run", trained / "run")
    tables = trained / "run" / "tables"
    expected = {name: (tables / name).read_bytes() for name in ("results.json", "selection.json")}
    old = json.loads(expected["results.json"])
    del old["methods"]["cycleqd_selected"], old["methods"]["cycleqd_soup"], old["selected"]
    (tables / "results.json").write_text(json.dumps(old))
    (tables / "selection.json").unlink()
    tree = yaml.safe_load((trained / "run" / "config.yaml").read_text())
    del tree["export"]
    for task in tree["tasks"]:
        del task["validation_size"]
    (trained / "run" / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["run", str(config), "export.elites=8"]) == 0
    found = json.loads((tables / "results.json").read_text())
    assert {name: found["methods"][name] for name in old["methods"]} == old["methods"]
    assert "cycleqd_selected" in found["methods"]
    chosen = json.loads((tables / "selection.json").read_text())["candidates"]
    assert len([one for one in chosen if one["kind"] == "elite"]) > 3


def test_without_validation_there_is_nothing_to_select(trained):
    tasks = [task | {"validation_size": 0} for task in small_config(trained)["tasks"]]
    assert main(["run", str(write_config(trained, tasks=tasks, export={"method": "aggregate"}))]) == 0
    results = json.loads((trained / "run" / "tables" / "results.json").read_text())
    assert set(results["methods"]) == METHODS - {"cycleqd_soup", "cycleqd_selected"}
    assert "selected" not in results
    assert not (trained / "run" / "tables" / "selection.json").exists()
    assert "| archive |" in (trained / "run" / "model" / "README.md").read_text()


def test_stages_one_by_one(finished, trained, capsys):
    config = str(write_config(trained))
    for stage in ("finetune", "evolve", "aggregate", "evaluate", "export"):
        assert main([stage, config]) == 0
    assert main(["report", str(trained / "run"), str(finished / "run")]) == 0
    out = capsys.readouterr().out
    assert "weight" in out
    assert (trained / "run" / "report.html").exists()
    assert (trained / "run/model/model.safetensors").read_bytes() == (finished / "run/model/model.safetensors").read_bytes()


def test_a_run_under_way_has_a_report(trained, capsys):
    assert main(["evolve", str(write_config(trained))]) == 0
    assert main(["report", str(trained / "run")]) == 0
    assert "report.html" in capsys.readouterr().out
