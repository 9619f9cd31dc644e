"""The row of gradient descent: its file, what it depends on, and its weights."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from cycleqd_jax import training
from cycleqd_jax.config import load_config
from cycleqd_jax.files import write_text
from cycleqd_jax.models import llama
from cycleqd_jax.models import tokenizer as chat
from cycleqd_jax.models.files import hf
from cycleqd_jax.runs.context import Context
from cycleqd_jax.runs.devices.groups import device_groups
from cycleqd_jax.runs.inputs.examples import Examples
from cycleqd_jax.runs.inputs.models import Models, model_folders
from cycleqd_jax.runs.inputs.resolve import resolve
from cycleqd_jax.runs.inputs.tasks import TrainingData
from cycleqd_jax.runs.training.gradient import GradientMerge
from cycleqd_jax.types import InputError, no_progress, tree_paths


def conversations(word):
    return [[{"role": "user", "content": f"say {word} {i}"}, {"role": "assistant", "content": f"{word} {i}"}] for i in range(9)]


@pytest.fixture
def merge_of(tmp_path):
    """``merge_of(*overrides)``: the merge of two given experts, the models of its run, and its log."""
    texts = [message["content"] for word in ("one", "two") for talk in conversations(word) for message in talk]
    tokenizer = chat.train_tiny_tokenizer(texts, 300)
    config = llama.LlamaConfig(tokenizer.vocab_size, 16, 32, 2, 2, 1, 8, max_position_embeddings=64)
    base = llama.init_params(config, jax.random.key(0))
    for name, scale in (("base", 1.0), ("one", 1.05), ("two", 0.98)):
        hf.save(tmp_path / name, config, jax.tree.map(lambda leaf, s=scale: leaf * s, base), tokenizer=tokenizer)
    tree = {
        "name": "demo",
        "output": str(tmp_path / "run"),
        "cache": str(tmp_path / "cache"),
        "tasks": [{"name": "mbpp"}, {"name": "dbbench"}],
        "engine": {"max_len": 65},
        "model": {
            "base": str(tmp_path / "base"),
            "experts": {"mbpp": str(tmp_path / "one"), "dbbench": str(tmp_path / "two")},
        },
        "gradient": {"steps": 3, "batch_size": 4, "groups": 2},
    }

    def make(*overrides, identity=1):
        config = load_config(tree, overrides)
        models, lines = Models(config, model_folders(config, {}), print), []
        data = {
            task: TrainingData(identity, lambda word=word: conversations(word))
            for task, word in (("mbpp", "one"), ("dbbench", "two"))
        }
        groups = device_groups(config, print)
        context = Context(config, models, (), Examples(models, data), groups, no_progress, lines.append)
        assert config.gradient is not None
        return GradientMerge(context, config.gradient), models, lines

    return make


@pytest.fixture
def fits(monkeypatch):
    """Counts the calls of the optimiser."""
    calls, fit = [], training.fit_coefficients
    monkeypatch.setattr(training, "fit_coefficients", lambda *args, **more: calls.append(more) or fit(*args, **more))
    return calls


@pytest.mark.exhaustive
def test_it_is_computed_once_and_expressed(merge_of, fits):
    merge, models, _ = merge_of()
    found = merge.ensure_fitted()
    assert found == json.loads(merge.file.read_text("utf-8"))
    assert found["tasks"] == ["mbpp", "dbbench"]
    assert (np.shape(found["coefficients"]), len(found["losses"])) == ((2, 2), 3)
    assert np.abs(np.asarray(found["coefficients"]) - 0.5).min() > 1e-3
    again = merge_of("search.generations=7")[0]
    assert again.ensure_fitted() == found
    expressed = dict(tree_paths(again.express()))
    assert len(fits) == 1
    base, experts = dict(tree_paths(models.base)), [dict(tree_paths(expert)) for expert in models.experts]
    c = np.asarray(found["coefficients"])
    for path, leaf in base.items():
        of_leaf = c if path.startswith("layers/") else c.mean(0, keepdims=True)
        taus = [np.asarray(expert[path]) - np.asarray(leaf) for expert in experts]
        shape = (-1, *(1,) * (leaf.ndim - 1))
        expected = np.asarray(leaf) + sum(of_leaf[:, k].reshape(shape) * tau for k, tau in enumerate(taus))
        np.testing.assert_allclose(expressed[path], expected, rtol=0, atol=1e-5, err_msg=path)


@pytest.mark.parametrize(
    "change", [*(pytest.param(f"gradient.{one}", marks=pytest.mark.exhaustive) for one in ("steps=2", "groups=1")), "seed=3"]
)
def test_it_is_computed_again_for_other_inputs(merge_of, fits, change):
    first = merge_of()[0].ensure_fitted()
    other = merge_of(change)[0].ensure_fitted()
    assert len(fits) == 2
    assert other["digest"] != first["digest"]


@pytest.mark.exhaustive
def test_other_data_and_a_damaged_file(merge_of, fits):
    merge_of()[0].ensure_fitted()
    merge, _, lines = merge_of(identity=2)
    found = merge.ensure_fitted()
    assert len(fits) == 2
    assert not lines
    for content in ("{", "[]", json.dumps({**found, "coefficients": [[1.0]]})):
        write_text(merge.file, content)
        assert merge.ensure_fitted()["coefficients"] == found["coefficients"]
        assert "gradient.json is damaged; the coefficients are computed again" in lines.pop()
    assert len(fits) == 5


def test_conversations_are_checked_where_they_are_needed(merge_of, fits, monkeypatch):
    merge = merge_of()[0]
    merge.check()
    monkeypatch.setattr(merge._context.examples, "of", lambda task: [([1] * 65, [1] * 65)])
    with pytest.raises(InputError, match="expected at most context_length = 64 tokens, got 65 in training example 0"):
        merge.check()
    merge = merge_of()[0]
    merge.ensure_fitted()
    monkeypatch.setattr(merge._context.examples, "of", lambda task: pytest.fail("they are not needed"))
    merge.check()
    assert merge.is_in({"methods": {"gradient": {}}, "gradient": merge.digest()})
    assert not merge.is_in({"methods": {}, "gradient": merge.digest()})
    assert not merge.is_in({"methods": {"gradient": {}}})


def test_what_it_has_used(merge_of):
    merge, models, _ = merge_of()
    found = merge.ensure_fitted()
    size = sum(leaf.size for _, leaf in tree_paths(models.base))
    # in every step the weights, and the products of their gradient with two task vectors
    expected = {"steps": 3, "flops": 3 * 2 * 2 * 2 * size, **{name: found[name] for name in ("tokens", "attended", "seconds")}}
    assert merge.usage() == expected
    write_text(merge.file, json.dumps({**found, "tokens": None}))
    assert merge.usage() is None


def test_more_groups_than_layers(merge_of):
    config = merge_of("gradient.groups=3")[0]._context.config
    with pytest.raises(InputError, match=r"expected 1 to 2 groups of layers, .*, got 3 in gradient.groups; correct the number"):
        resolve(config)
