"""What ``import cycleqd_jax`` offers, and a notebook that uses nothing else."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cycleqd_jax as cq

FACE = [
    "CMAES",
    "NSGA2",
    "Adapter",
    "ChatGenerator",
    "CoefficientSpace",
    "CycleQD",
    "DenseSpace",
    "Engine",
    "ExpertSpace",
    "FailuresError",
    "InfraError",
    "InputError",
    "LowRank",
    "Model",
    "PlainQD",
    "RandomSearch",
    "RecordTask",
    "Run",
    "RunConfig",
    "RunFolder",
    "__version__",
    "aggregate",
    "compare",
    "load_config",
    "load_model",
    "open_run",
    "operators",
]


def test_the_face_is_what_the_docs_list():
    assert cq.__all__ == FACE
    assert set(FACE) <= set(dir(cq))
    assert {*cq._SUBPACKAGES, "__version__", "operators"} == set(FACE)
    docs = Path(__file__).parents[1] / "docs"
    assert re.search("^::: cycleqd_jax$", (docs / "reference" / "index.md").read_text("utf-8"), re.MULTILINE)
    pages = [docs.parent / "README.md", docs.parent / "CHANGELOG.md", *docs.rglob("*.md")]
    used = {name for page in pages for name in re.findall(r"\bcq\.(\w+)", page.read_text("utf-8"))}
    assert used <= set(FACE)
    assert {name for name in FACE if name != "__version__"} <= used  # the changelog has all


WITHOUT_EXAMPLES = {
    "FailuresError": "an error",
    "InfraError": "an error",
    "InputError": "an error",
    "Run": "needs models; the tutorials run it",
    "RunFolder": "needs a run; the tests below read one",
    "__version__": "a text",
    "compare": "needs runs; tests/runs/comparison/test_comparison.py compares some",
    "load_model": "needs a folder; the tests below load one",
    "open_run": "needs a run; the tests below read one",
}
"""The names without an executed example, and why."""


@pytest.mark.parametrize("name", FACE)
def test_every_name_has_an_example_or_a_reason(name):
    """``tests/docs/test_doctests.py`` runs the examples; there the names are found in their own modules."""
    text = "" if name == "__version__" else getattr(cq, name).__doc__
    examples = [one for one in doctest.DocTestParser().get_examples(text) if not one.options.get(doctest.SKIP)]
    examples = [one for one in examples if not one.source.startswith("import ")]
    assert bool(examples) != (name in WITHOUT_EXAMPLES)


@pytest.mark.parametrize("name", FACE)
def test_every_name_is_documented_and_comes_from_its_room(name):
    value = getattr(cq, name)
    if name == "__version__":
        assert value.count(".") == 2
    else:
        assert value.__doc__
        assert getattr(value, "__module__", value.__name__).startswith("cycleqd_jax.")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'cycleqd_jax' has no attribute 'CycleQd'"):
        cq.CycleQd


def test_names_are_imported_when_they_are_used():
    code = "import sys, cycleqd_jax as cq; cq.InputError; print('cycleqd_jax.engine' in sys.modules, 'qdax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False False\n"


TINY = {
    "name": "tiny",
    "tasks": [
        {"name": name, "train_size": 2, "validation_size": 2, "test_size": 2, "finetune_size": 8}
        for name in ("mbpp", "dbbench")
    ],
    "model": {
        "tiny": {
            "vocab_size": 400,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_layers": 1,
            "num_heads": 2,
            "num_kv_heads": 1,
            "problems": 60,
        }
    },
    "pretrain": {"steps": 2, "batch_size": 4},
    "finetune": {"steps": 2, "batch_size": 4},
    "search": {"generations": 2, "batch_size": 2, "bounds": {"mbpp": [0, 1], "dbbench": [0, 1]}},
    "engine": {"slots": 8, "max_len": 192},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole tiny run, from Python alone."""
    folder = tmp_path_factory.mktemp("notebook")
    config = cq.load_config({**TINY, "output": str(folder / "run"), "cache": str(folder / "cache")})
    lines = []
    with cq.Run(config, progress=lambda *_: None, log=lines.append) as run:
        run.train()
        run.evolve()
        results = run.evaluate()
        exported = run.export()
        pages = run.report()
    assert exported == folder / "run" / "model"
    assert pages[-1].name == "report.html"
    assert any(line.startswith("sandbox: ") for line in lines)
    return folder / "run", results


@pytest.mark.e2e
def test_a_run_from_python(finished):
    folder, results = finished
    searched = {"cycleqd_best_elite", "cycleqd_soup", "cycleqd", "cycleqd_selected"}
    assert {"base", "expert/mbpp", "expert/dbbench", "uniform_merge", *searched} == set(results["methods"])
    before = (folder / "history.jsonl").read_bytes()
    with cq.Run(cq.load_config(folder / "config.yaml")) as again:
        assert again.results() == results
        again.evolve()
    assert (folder / "history.jsonl").read_bytes() == before


def test_a_run_does_nothing_before_it_is_opened(tmp_path):
    config = cq.load_config({**TINY, "output": str(tmp_path / "run"), "cache": str(tmp_path / "cache")})
    run = cq.Run(config)
    assert list(tmp_path.iterdir()) == []
    run.close()


STAGES = ["train", "build_basis", "evolve", "aggregate", "evaluate", "export", "report"]


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A run that was open."""
    folder = tmp_path_factory.mktemp("closed")
    config = cq.load_config({**TINY, "output": str(folder / "run"), "cache": str(folder / "cache")})
    with cq.Run(config) as run:
        pass
    yield run
    with cq.Run(run.config):  # nobody holds the folder, after all stages
        pass


@pytest.mark.parametrize("stage", [*STAGES, "results"])
def test_a_stage_needs_an_open_run(closed, stage):
    for run in (closed, cq.Run(closed.config)):
        with pytest.raises(cq.InputError, match=f"expected an open run, got one that is not open in Run.{stage}; use `with"):
            getattr(run, stage)()


@pytest.mark.e2e
def test_a_read_only_run_reads(finished):
    folder, results = finished
    config = cq.load_config(folder / "config.yaml")
    with cq.Run(config):  # another may hold the folder
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        with cq.Run(config, read_only=True) as run:
            assert run.results() == results
            measured = run.evaluate_model(folder / "model")
            for stage in STAGES:
                with pytest.raises(cq.InputError, match=f"expected a run that may write, got read_only=True in Run.{stage};"):
                    getattr(run, stage)()
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    for split, evaluation in measured.items():
        assert evaluation.error is None
        row = results["methods"]["cycleqd"][split]
        assert evaluation.scores == {task: row[task] for task in ("mbpp", "dbbench")}


@pytest.mark.e2e
def test_the_archives_of_a_finished_run(finished):
    run = cq.open_run(finished[0])
    individuals = run.individuals
    assert [record["id"] for record in individuals] == list(range(2 + 2 * 2))
    assert set(run.archives) == {"mbpp", "dbbench"}
    assert all(elite["id"] in range(6) for elites in run.archives.values() for elite in elites)
    assert {"method", "split", "task", "score"} <= set(run.results[0])
    assert run.lineage(5)[0]["id"] == 5


@pytest.mark.e2e
def test_a_model_is_loaded_and_generates(finished, tmp_path):
    model = cq.load_model(finished[0] / "model")
    assert model.config.hidden_size == 32
    text = model.generate("How many files are in /tmp?", max_new_tokens=5)
    assert isinstance(text, str)
    assert "".join(model.stream("How many files are in /tmp?", max_new_tokens=5)) == text
    assert model.generate([{"role": "user", "content": "How many files are in /tmp?"}], max_new_tokens=5) == text
    with pytest.raises(cq.InputError, match="leaves room"):
        model.generate("word " * 500, max_new_tokens=5)
    model.save(tmp_path / "copy")
    copy = cq.load_model(tmp_path / "copy")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), copy.params, model.params))


def test_two_flax_models_merged():
    net = nn.Dense(3)
    base = net.init(jax.random.key(0), jnp.ones(4))["params"]
    experts = [jax.tree.map(lambda x, k=k: x + 0.1 * k, base) for k in (1, 2)]
    space = cq.ExpertSpace.from_experts(base, experts)
    search = cq.CycleQD(space, bins=4)
    genomes = jax.vmap(space.expert)(jnp.arange(2))
    state = search.init(genomes, jnp.array([[0.9, 0.1], [0.2, 0.9]]))  # the elites have equal weights
    children, lineage, state = search.ask(state, jax.random.key(1), 4)
    state = search.tell(state, children, jnp.full((4, 2), 0.5), lineage)
    merged = space.express(cq.aggregate(state.archives).genome)
    taus = [cq.operators.task_vector(expert, base) for expert in experts]
    middle = cq.operators.apply_task_vector(base, cq.operators.linear_crossover(*taus, jnp.ones(2)))
    assert net.apply({"params": merged}, jnp.ones(4)).shape == (3,)
    for leaf in ("kernel", "bias"):
        b, *tuned = (np.asarray(tree[leaf], np.float64) for tree in (base, *experts))
        np.testing.assert_allclose(merged[leaf], b + sum(expert - b for expert in tuned) / 2, rtol=0, atol=1e-6)
    np.testing.assert_allclose(middle["kernel"], base["kernel"] + 0.15, rtol=1e-6)
