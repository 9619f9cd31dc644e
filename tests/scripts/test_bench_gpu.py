"""The measurement of one accelerator, with a tiny model on a CPU."""

from __future__ import annotations

import jax
import pytest

from cycleqd_jax.engine import Engine
from cycleqd_jax.models import llama

from ..script import load_script

CONFIG = llama.LlamaConfig(64, 32, 64, 2, 2, 1, 16, max_position_embeddings=128)
PEAK = {"bytes_per_s": 1e10, "flop_per_s": 1e11}


@pytest.mark.exhaustive
def test_decoding_prefill_and_drafts(monkeypatch, capsys):
    bench = load_script("bench_gpu")
    monkeypatch.setattr(bench, "PROMPT", 8)
    monkeypatch.setattr(bench, "NEW", 16)
    engine = Engine(CONFIG, slots=2, max_len=64, stop_ids=(63,), pad_id=0, window=4)
    params, found = llama.init_params(CONFIG, jax.random.key(0)), {}
    prompts = [[10, 11, 12, 13, 14, 15, 16, 17], [20, 21, 22, 23, 24, 25, 26, 27]]
    bench.report(found, "2 slots", bench.decoding(engine, params, prompts, PEAK))
    assert found["2 slots"]["prefill_tokens_per_s"] > 0
    drafts = bench.drafting(engine, params, prompts, 0.0)
    assert drafts["equal_replies"] == drafts["replies"] == 2
    assert drafts["without_steps"] > drafts["with_steps"]
    assert capsys.readouterr().out.startswith("2 slots: {")


@pytest.mark.parametrize("wrong", [["--max-len", "600"], ["--slots", "0"], ["--peer", "0"]])
def test_sizes_that_do_not_fit_are_refused_at_once(wrong, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench_gpu.py", *wrong])
    with pytest.raises(SystemExit):
        load_script("bench_gpu").main()
    assert "expected --max-len of at least 657" in capsys.readouterr().err
