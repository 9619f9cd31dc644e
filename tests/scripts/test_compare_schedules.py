"""The comparison of a steady search with generations."""

from __future__ import annotations

import json

import pytest

from ..script import load_script


@pytest.mark.exhaustive
def test_with_one_worker_both_find_the_same(tmp_path):
    bench = load_script("compare_schedules")
    found = bench.main(["--workers", "1", "--children", "6", "--seeds", "2", "--json", str(tmp_path / "found.json")])
    assert json.loads((tmp_path / "found.json").read_text()) == found
    for rows in found.values():
        assert rows["steady"] == rows["generations"]
        assert {row["busy"] for row in rows["steady"]} == {1.0}


@pytest.mark.exhaustive
def test_steady_workers_wait_less(capsys):
    bench = load_script("compare_schedules")
    found = bench.main(["--workers", "4", "--children", "24", "--seeds", "2"])
    rows = found["independent"]
    for steady, generations in zip(rows["steady"], rows["generations"], strict=True):
        assert steady["busy"] > generations["busy"]
        assert steady["seconds"] < generations["seconds"]
        assert 0 < steady["best average"] <= 1
    assert capsys.readouterr().out.count("| QD score |") == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--children", "9"], "expected --children to be a multiple of --workers, both at least 1, got 9 and 8; correct"),
        (["--workers", "0"], "expected --children to be a multiple of --workers, both at least 1, got 400 and 0; correct"),
        (["--seeds", "1"], "expected --seeds of at least 2, got 1; increase it"),
    ],
)
def test_numbers_that_do_not_fit(wrong, message, capsys):
    with pytest.raises(SystemExit):
        load_script("compare_schedules").main(wrong)
    assert message in capsys.readouterr().err
