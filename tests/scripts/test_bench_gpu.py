"""The measurement of one accelerator, with a tiny model on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import pytest

from cycleqd_jax.engine import Engine
from cycleqd_jax.models import llama

from ..script import load_script

CONFIG = llama.LlamaConfig(1024, 32, 64, 2, 2, 1, 16, max_position_embeddings=128)
PEAK = {"bytes_per_s": 1e10, "flop_per_s": 1e11}


@pytest.mark.exhaustive
def test_decoding_prefill_and_drafts(monkeypatch, capsys):
    bench = load_script("bench_gpu")
    monkeypatch.setattr(bench, "PROMPT", 8)
    monkeypatch.setattr(bench, "NEW", 16)
    engine = Engine(CONFIG, slots=2, max_len=64, stop_ids=(1023,), pad_id=0, window=4)
    params, found = llama.init_params(CONFIG, jax.random.key(0)), {}
    prompts = [[10, 11, 12, 13, 14, 15, 16, 17], [20, 21, 22, 23, 24, 25, 26, 27]]
    bench.report(found, "2 slots", bench.decoding(engine, params, prompts, PEAK))
    assert found["2 slots"]["prefill_tokens_per_s"] > 0
    drafts = bench.drafting(engine, params, prompts, 0.0)
    assert drafts["equal_replies"] == drafts["replies"] == 2
    assert drafts["without_steps"] > drafts["with_steps"]
    assert capsys.readouterr().out.startswith("2 slots: {")


@pytest.mark.exhaustive
def test_everything_is_measured(monkeypatch, tmp_path):
    pytest.importorskip("torch", reason="torch, which bench_operators.py needs, is not installed")
    bench = load_script("bench_gpu")
    for name, value in {"PROMPT": 8, "NEW": 16, "LLAMA3_8B": CONFIG.replace(dtype="bfloat16"), "peaks": lambda: PEAK}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    sizes = ["--slots", "2", "--max-len", "64", "--rank", "4", "--drafts", "0"]
    monkeypatch.setattr("sys.argv", ["bench_gpu.py", *sizes, "--json", str(tmp_path / "found.json")])
    bench.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert [*found] == ["device", "child, rank 4", "2 slots", "2 slots, drafts of which 0% differ", "memory"]
    assert found["child, rank 4"]["into_new_arrays_s"] > 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--max-len", "600"], "expected --max-len of at least 657, got 600; increase it"),
        (["--slots", "0"], "expected numbers of at least 1 with --slots and --peer, got 0; increase it"),
        (["--peer", "0"], "expected numbers of at least 1 with --slots and --peer, got 0; increase it"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_at_once(wrong, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench_gpu.py", *wrong])
    with pytest.raises(SystemExit):
        load_script("bench_gpu").main()
    assert message in capsys.readouterr().err
