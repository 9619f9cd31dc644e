"""The models of a real run: names, weights of genomes, and a journal that grows."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import cycleqd_jax as cq
from cycleqd_jax.runs.folder.models import RunModels
from cycleqd_jax.serve import Job, RunCatalog, UnknownModel, WeightCache
from cycleqd_jax.types import InputError

pytestmark = pytest.mark.e2e


def silent(*args):
    pass


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "run"
    shutil.copytree(finished / "run", folder)
    return folder


@pytest.fixture(scope="module")
def catalog(run):
    with RunModels(run, silent, silent) as models:
        models.prepare()
        yield RunCatalog(models)


def equal(one, other):
    leaves = [jax.tree.leaves(tree) for tree in (one, other)]
    return all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


def test_names(catalog, run):
    kinds = {}
    for one in catalog.entries():
        kinds.setdefault(one.kind, []).append(one.id)
    assert kinds["final"] == ["final"]
    assert kinds["base"] == ["base"]
    assert kinds["expert"] == ["expert:mbpp", "expert:dbbench", "expert:os_interaction"]
    archives = cq.open_run(run).archives
    cells = [f"elite:{task}/{','.join(map(str, one['cell']))}" for task, elites in archives.items() for one in elites]
    assert kinds["elite"] == cells
    assert {f"child:{one['id']}" for elites in archives.values() for one in elites} == set(kinds["child"])
    for name in (
        "nothing",
        "child:99999",
        "child:x",
        "expert:x",
        "elite:mbpp/99,99",
        "elite:mbpp",
        "child:" + "9" * 30,
        "",
        "child:00",
        "child:\u0660",
    ):
        with pytest.raises(UnknownModel, match="expected"):
            catalog.resolve(name)


def test_a_cell_has_one_name(catalog, run):
    cell = cq.open_run(run).archives["mbpp"][-1]["cell"]
    assert catalog.resolve(f"elite:mbpp/{','.join(map(str, cell))}")
    for separator in (", ", ",0", ",+"):
        with pytest.raises(UnknownModel, match="expected numbers without other signs"):
            catalog.resolve(f"elite:mbpp/{separator.join(map(str, cell))}")


def test_weights_are_those_of_the_folders(catalog, run):
    from cycleqd_jax.models.files import hf

    assert equal(catalog.express(catalog.resolve("final"))[0], hf.load(run / "model")[1])
    loaded = catalog._models.models
    assert equal(catalog.express(catalog.resolve("base"))[0], loaded.base)
    assert equal(catalog.express(catalog.resolve("expert:mbpp"))[0], loaded.expert_params("mbpp"))


def test_a_merged_adapter_is_kept(catalog, monkeypatch):
    loaded = catalog._models.models
    base, whole = loaded.base["layers"]["attn"]["q"], loaded.expert_params("mbpp")
    rows, columns = base.shape[-2:]
    factors = np.full((len(base), rows, 1), 0.01, np.float32), np.ones((len(base), 1, columns), np.float32)
    adapter = cq.Adapter({"layers/attn/q": cq.LowRank(*factors)})
    monkeypatch.setattr(loaded, "_loaded", dataclasses.replace(loaded._loaded, experts=[adapter, *loaded.experts[1:]]))
    cache = WeightCache(catalog.express, 2**30)
    first, second = (cache.get(catalog.resolve("expert:mbpp")) for _ in range(2))
    assert first[0] is second[0]
    assert not any((first[1], second[1]))
    assert np.allclose(first[0]["layers"]["attn"]["q"] - base, 0.01, atol=1e-6)
    assert not equal(first[0], whole)
    assert equal(first[0]["embed_tokens"], loaded.base["embed_tokens"])
    large = WeightCache(catalog.express, 0)
    params, owned = large.get(catalog.resolve("expert:mbpp"))
    assert owned
    jax.tree.map(lambda leaf: leaf.delete(), params)  # as the engine's donation does
    assert equal(large.get(catalog.resolve("expert:mbpp"))[0], first[0])


def test_names_of_equal_weights_share_a_key(catalog, run):
    elite = cq.open_run(run).archives["mbpp"][-1]
    cell = ",".join(map(str, elite["cell"]))
    assert catalog.resolve(f"elite:mbpp/{cell}") == catalog.resolve(f"child:{elite['id']}")


def test_replies_of_an_individual_equal_those_of_its_exported_model(catalog, run):
    identity = max(one["id"] for elites in cq.open_run(run).archives.values() for one in elites)
    from cycleqd_jax.runs.export.model_folders import export_from_folder
    from cycleqd_jax.runs.folder.models import ModelChoice

    folder = export_from_folder(run, ModelChoice("child", id=identity), progress=silent, log=silent)
    messages = [{"role": "user", "content": "List the files"}]
    expected = cq.load_model(folder).generate(messages, max_new_tokens=24)
    cache = WeightCache(catalog.express, 2**30)
    engine = catalog.engine(2, 96)
    from cycleqd_jax.serve import EngineWorker

    worker = EngineWorker(engine, catalog.tokenizer, lambda key: engine.load(cache.get(key)[0]))
    prompt = tuple(catalog.tokenizer.encode(messages))
    tickets = worker.submit([Job(catalog.resolve(name), prompt, 24) for name in ("base", f"child:{identity}", "base")])
    while worker.state().running or worker.state().waiting:
        worker.step()
    assert tickets[1].take().text == expected
    assert tickets[0].take().text == tickets[2].take().text


def test_a_journal_that_grows(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    (folder / "tables" / "selection.json").unlink()
    journal = folder / "history.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    last = len(lines) - 1
    journal.write_text("".join(lines[:-1]))
    with RunModels(folder, silent, silent) as models:
        catalog = RunCatalog(models)
        assert "final" not in [one.id for one in catalog.entries()]
        with pytest.raises(UnknownModel, match="finished selection"):
            catalog.resolve("final")
        with pytest.raises(UnknownModel):
            catalog.resolve(f"child:{last}")
        journal.write_text("".join(lines))
        assert catalog.resolve(f"child:{last}")
        journal.write_text("".join(lines[:2]))
        assert {one.kind for one in catalog.entries()} == {"base", "expert"}


def test_a_changed_expert_is_refused(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished / "run", folder)
    (folder / "inputs.json").write_text("{}")
    with RunModels(folder, silent, silent) as models, pytest.raises(InputError):
        RunCatalog(models)
