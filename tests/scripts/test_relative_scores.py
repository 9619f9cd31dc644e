"""Relative scores: what merged models keep of their experts, paired with them."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from cycleqd_jax.types import InputError

from ..script import load_script

TASKS = ("polyp", "skin")


@pytest.fixture(scope="module")
def relative():
    return load_script("relative_scores")


def comparison(
    folder: Path, factor: float, seeds=(0, 1), similarity: float | None = 0.5, items=40, tasks=TASKS, same=True
) -> Path:
    """A comparison in which the merge has the scores of the experts times a factor.

    Without a similarity an expert is equal to the base.
    """
    rng, found = np.random.default_rng(0), {}
    for seed in seeds:
        own = {task: rng.uniform(0.5, 1, items) for task in tasks}
        other = {task: rng.uniform(0.1, 0.3, items) for task in tasks}
        rows = {f"expert/{task}": {one: (own if one == task else other)[one] for one in tasks} for task in tasks}
        rows["uniform_merge"] = {task: factor * own[task] for task in tasks}
        found[str(seed)] = {
            row: {"test": {task: scores.tolist() for task, scores in by_task.items()}} for row, by_task in rows.items()
        }
        basis = folder / f"seed-{seed}" / "cycleqd" / "tables" / "basis.json"
        basis.parent.mkdir(parents=True)
        tables = {
            key: [[1, value], [value, 1]]
            for key, value in (("singular_values", similarity), ("task_vectors", similarity and similarity / 8))
        }
        basis.write_text(json.dumps({"similarity": tables}))
    (folder / "tables").mkdir()
    write_items(folder, found)
    (folder / "tables" / "comparison.json").write_text(json.dumps({"same_problems": {"test": same}}))
    return folder


def write_items(folder: Path, found: dict) -> None:
    (folder / "tables" / "items.json.gz").write_bytes(gzip.compress(json.dumps(found).encode()))


def read_items(folder: Path) -> dict:
    return json.loads(gzip.decompress((folder / "tables" / "items.json.gz").read_bytes()))


@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_scores_are_paired_with_those_of_the_expert(relative, tmp_path, seeds):
    found = relative.kept(comparison(tmp_path / "one", 0.8, seeds))
    assert (found.tasks, found.seeds) == (TASKS, len(seeds))
    for one in found.relative["uniform_merge"]:  # a constant factor has no spread
        assert (one.mean, one.low, one.high) == pytest.approx((0.8, 0.8, 0.8))
    own, other, mean = found.relative["expert/polyp"]
    assert (own.mean, own.low, own.high) == (1, 1, 1)
    assert other.low < other.mean < other.high < 0.5
    assert mean.mean == pytest.approx((1 + other.mean) / 2)
    assert found.similarity == pytest.approx((0.5, 0.0625))


def test_similarity_is_correlated_with_what_is_kept(relative, tmp_path):
    values = ((0.9, 0.8), (0.7, 0.6), (0.6, 0.5))
    found = [relative.kept(comparison(tmp_path / str(i), *value[:1], similarity=value[1])) for i, value in enumerate(values)]
    assert relative.correlations(found, ["uniform_merge"])["similarity"] == pytest.approx([1.0])
    text = relative.markdown(found, ["uniform_merge"])
    assert "| polyp + skin | 0.800 | 0.100 | 0.90 [0.90, 0.90] |" in text
    assert "| The paper's CycleQD (ViT-H) |  | 0.98 |  | 0.95 | 0.96 |" in text
    assert "| correlation with the similarity |  |  | 1.00 |" in text


def test_unfinished_comparisons_are_refused(relative, tmp_path):
    with pytest.raises(InputError, match=r"expected a finished comparison in .*, got no items\.json\.gz"):
        relative.kept(tmp_path)
    folder = comparison(tmp_path / "one", 0.8)
    (folder / "tables" / "comparison.json").unlink()
    with pytest.raises(InputError, match=r"got no comparison\.json; run `cycleqd compare` first"):
        relative.kept(folder)


def test_other_test_problems_are_refused_even_if_there_are_as_many(relative, tmp_path):
    with pytest.raises(InputError, match=r"expected the same test problems for all seeds, got others in .*comparison\.json"):
        relative.kept(comparison(tmp_path, 0.8, same=False))


def test_rows_without_scores_and_unknown_rows_are_named(relative, tmp_path):
    folder = comparison(tmp_path / "one", 0.8)
    with pytest.raises(InputError, match=r"expected --rows to be rows of all comparisons, got 'ties' and one of polyp \+ skin"):
        relative.markdown([relative.kept(folder)], ["uniform_merge", "ties"])
    items = read_items(folder)
    del items["1"]["uniform_merge"]["test"]["skin"]
    write_items(folder, items)
    with pytest.raises(
        InputError, match=r"expected test scores of task 'skin' for the row uniform_merge of seed 1, got none in .*items"
    ):
        relative.kept(folder)


def test_the_paper_is_found_in_any_order_of_tasks(relative, tmp_path):
    found = relative.kept(comparison(tmp_path, 0.8, (0,), tasks=TASKS[::-1]))
    assert "| The paper's CycleQD (ViT-H) |  | 0.95 |  | 0.98 | 0.96 |" in relative.markdown([found], ["uniform_merge"])


def test_an_expert_equal_to_the_base_has_no_similarity(relative, tmp_path, monkeypatch, capsys):
    values = ((0.9, None), (0.8, 0.5), (0.7, 0.4))
    folders = [comparison(tmp_path / str(i), kept, (0,), similarity=value) for i, (kept, value) in enumerate(values)]
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["relative_scores.py", *map(str, folders), "--rows", "uniform_merge", "--json", str(out)])
    relative.main()
    text = capsys.readouterr().out
    assert "| polyp + skin | – | – | 0.90 [0.90, 0.90] |" in text
    assert "| correlation with the similarity |  |  | – |" in text
    assert [one["similarity"] for one in json.loads(out.read_text())] == [[None, None], [0.5, 0.0625], [0.4, 0.05]]


def test_an_expert_that_never_scores_is_named(relative, tmp_path):
    folder = comparison(tmp_path, 0.8)
    items = read_items(folder)
    for one in items.values():
        one["expert/skin"]["test"]["skin"] = [0.0] * 39 + [1.0]  # a bootstrap sample may have zeros alone
    write_items(folder, items)
    with pytest.raises(
        InputError, match=r"expected an expert with test scores above 0 .*'skin', got a mean of 0\.025 in .*items"
    ):
        relative.kept(folder)


@pytest.mark.parametrize("name", ["tables/items.json.gz", "tables/comparison.json", "seed-0/cycleqd/tables/basis.json"])
def test_a_damaged_file_ends_the_script_in_one_sentence(relative, tmp_path, monkeypatch, capsys, name):
    file = comparison(tmp_path, 0.8) / name
    file.write_bytes(file.read_bytes()[:-9])
    monkeypatch.setattr(sys, "argv", ["relative_scores.py", str(tmp_path)])
    with pytest.raises(SystemExit) as error:
        relative.main()
    assert error.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("relative_scores: expected a whole file of `cycleqd compare`, got ")
    assert f"{file}; compare again" in shown
