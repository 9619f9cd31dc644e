from __future__ import annotations

import pytest

from ..script import load_script


@pytest.fixture(scope="module")
def bench():
    return load_script("bench_sandbox")


def test_the_ratio_is_that_of_medians(bench):
    found = bench._summary({"before": [0.01, 0.02, 9.0], "after": [0.03, 0.01, 0.04]}, {"before": [0.004], "after": [0.002]})
    assert found == {
        "ms": {"before": 20.0, "after": 30.0},
        "ratio": 1.5,
        "cpu_ms": {"before": 4.0, "after": 2.0},
        "cpu_ratio": 0.5,
    }
    head, line = bench._show({"box start": found})
    assert head.split() == ["wall", "ms", "ratio", "CPU", "ms", "ratio"]
    assert line.split() == ["box", "start", "20.00", "→", "30.00", "1.5", "4.00", "→", "2.00", "0.5"]


def test_one_checkout_has_no_ratio(bench):
    found = bench._summary({"after": [0.03]}, {"after": []})
    assert found == {"ms": {"after": 30.0}}
    assert len(list(bench._show({"box start": found}))) == 2


@pytest.mark.exhaustive
def test_every_measurement_runs(bench, tmp_path):
    tasks = bench.Bench("auto", str(tmp_path), "")
    try:
        for name, measure in tasks.measures.items():
            assert measure() > 0, name
    finally:
        tasks.close()
