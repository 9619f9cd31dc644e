"""The benchmark against lm-evaluation-harness's model ``hf``, on a tiny model and on SmolLM2-135M."""

from __future__ import annotations

import gzip
import json
import os

import pytest

from cycleqd_jax.models.fetch import fetch_smollm2

from ..lm_eval.conftest import folder
from ..models.conftest import smollm2_gguf
from ..script import load_script

__all__ = ["folder", "smollm2_gguf"]

pytest.importorskip("lm_eval", reason="lm-eval is not installed; the extra lm-eval brings it")
pytest.importorskip("torch", reason="torch, which the model hf computes with, is not installed")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow, pytest.mark.timeout(7200)]
CHOICE = ("arc_challenge", "arc_easy", "boolq", "commonsenseqa", "hellaswag")


def test_all_tasks_with_a_tiny_model(folder, data_dir, tmp_path):
    bench = load_script("bench_lm_eval")
    where = ["--model", str(folder), "--data", str(data_dir), "--json", str(tmp_path / "found.json")]
    found = bench.main([*where, "--items", str(tmp_path / "items.json.gz"), "--tasks", *CHOICE, "--limit", "3"])
    assert json.loads((tmp_path / "found.json").read_text()) == found
    items = json.loads(gzip.decompress((tmp_path / "items.json.gz").read_bytes()))
    assert [[one["problem"] for one in items[name]] for name in CHOICE] == [[0, 1, 2]] * len(CHOICE)
    for name in CHOICE:
        task = found["tasks"][name]
        assert task["requests"] >= 6
        assert (task["problems"], task["different_choices"]) == (3, 0)
        assert task["different_greedy"] == 0
        assert all(ours == theirs for ours, theirs in task["metrics"].values())


def test_smollm2_gives_the_numbers_of_hf(smollm2_gguf, data_dir, tmp_path):
    """CYCLEQD_LM_EVAL_LIMIT is the number of problems of each file."""
    bench = load_script("bench_lm_eval")
    model = fetch_smollm2(tmp_path / "model")
    limit = os.environ.get("CYCLEQD_LM_EVAL_LIMIT", "8")
    found = bench.main(["--model", str(model), "--data", str(data_dir), "--tasks", *CHOICE, "--limit", limit])
    for name in CHOICE:
        task = found["tasks"][name]
        assert task["largest_difference"] < 1e-3  # of sums over dozens of tokens, where hf itself rounds by 1e-4
        assert task["different_greedy"] == 0
        assert all(ours == theirs for ours, theirs in task["metrics"].values())
