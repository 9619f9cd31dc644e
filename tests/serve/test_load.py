"""A server process under load: nothing is lost, the memory stays, and SIGTERM ends it with code 0."""

from __future__ import annotations

import json

import pytest

from ..script import load_script


@pytest.fixture(scope="module")
def bench():
    return load_script("bench_serve")


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("clients", "seconds", "growth_mib"),
    [(16, 5, 32), pytest.param(64, 120, 32, marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_clients_of_all_kinds(bench, capsys, compiled, monkeypatch, tmp_path, clients, seconds, growth_mib):
    monkeypatch.chdir(tmp_path)
    for name, value in compiled.items():
        monkeypatch.setenv(name, value)
    found = bench.measure(None, clients, seconds, warm_up_s=3 if seconds < 60 else 20)
    with capsys.disabled():
        print(f"\n{json.dumps(found)}")
    assert found["lost"] == []
    assert found["left_running"] == 0
    assert set(found["requests"]) == set(bench.KINDS)
    memory = found["memory_mib"]
    assert memory["last_quarter"] - memory["first_quarter"] < growth_mib


def test_the_table(bench):
    figures = {"p50": 1.0, "p90": 2.0, "p95": 3.0, "p99": 4.0}
    memory = {"first_quarter": 1.0, "last_quarter": 2.0, "after": 3.0}
    found = {"clients": 1, "seconds": 1.0, "requests": {"stream": 3}, "lost": [], "refused": 0, "tokens_per_s": 5.0}
    text = bench.markdown({**found, "first_text_ms": figures, "whole_ms": figures, "memory_mib": memory})
    assert "| first text of a stream (ms) | p50 1, p90 2, p95 3, p99 4 |" in text
