"""A prepared base: its folder, its training, and the models that start from it."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from cycleqd_jax.config import load_config
from cycleqd_jax.models import llama
from cycleqd_jax.models import tokenizer as chat
from cycleqd_jax.models.files import hf
from cycleqd_jax.runs.inputs.examples import Examples
from cycleqd_jax.runs.inputs.models import Models, model_folders
from cycleqd_jax.runs.inputs.resolve import input_digests
from cycleqd_jax.runs.inputs.tasks import TrainingData
from cycleqd_jax.runs.training.trainer import Trainer
from cycleqd_jax.types import InputError, tree_paths

TASKS = {"tasks": [{"name": "mbpp"}, {"name": "dbbench"}]}
IDENTITIES = {"mbpp": {"a": 1}, "dbbench": {"b": 2}}


def names(*overrides, identities=IDENTITIES):
    tree = {"name": "demo", "cache": "cache", "baselines": ["finetune_all"], **TASKS}
    folders = model_folders(load_config(tree, overrides), identities)
    return {name: folder.name for name, folder in {**folders.search, **folders.baselines}.items()}


def test_without_it_caches_keep_their_names():
    assert names() == {
        "base": "base-944c838f698451f1",
        "expert/mbpp": "expert-mbpp-21a56f5b2d567982",
        "expert/dbbench": "expert-dbbench-8af6df35e49a8a28",
        "finetune_all": "finetune_all-c8b63cc6eca72815",
    }


def test_what_the_names_depend_on():
    plain, prepared = names(), names("model.prepare={}")
    assert list(prepared) == ["base", "prepared_base", "expert/mbpp", "expert/dbbench", "finetune_all"]
    assert prepared["base"] == plain["base"]
    assert not {*plain.values()} & {prepared[name] for name in prepared if name != "base"}
    same = [
        names("model.prepare.shares={mbpp: 2, dbbench: 2}"),
        names("model.prepare.steps=300", "search.generations=7", "gradient={}"),
    ]
    assert all(one == prepared for one in same)
    changed = [
        names("model.prepare.steps=7"),
        names("model.prepare.shares={mbpp: 1, dbbench: 2}"),
        names("model.prepare={}", identities={**IDENTITIES, "dbbench": {"b": 3}}),
        names("model.prepare={}", "pretrain.steps=7"),
    ]
    for name in ("prepared_base", "expert/mbpp", "finetune_all"):
        assert len({one[name] for one in [prepared, *changed]}) == 5
    finetune = names("model.prepare={}", "finetune.steps=7")
    assert finetune["prepared_base"] == prepared["prepared_base"]
    assert finetune["expert/mbpp"] != prepared["expert/mbpp"]


def test_data_without_a_share_do_not_matter():
    other = {**IDENTITIES, "dbbench": {"b": 3}}
    share = "model.prepare.shares={mbpp: 1, dbbench: 0}"
    assert names(share)["prepared_base"] == names(share, identities=other)["prepared_base"]
    assert names(share)["expert/mbpp"] == names(share, identities=other)["expert/mbpp"]


# Training


def conversations(word):
    return [[{"role": "user", "content": f"say {word} {i}"}, {"role": "assistant", "content": f"{word} {i}"}] for i in range(9)]


@pytest.fixture
def trained(tmp_path):
    """``trained(*overrides)``: config, models and the tasks whose data were loaded, after the training of everything."""
    texts = [message["content"] for word in ("one", "two") for talk in conversations(word) for message in talk]
    tokenizer = chat.train_tiny_tokenizer(texts, 300)
    architecture = llama.LlamaConfig(tokenizer.vocab_size, 16, 32, 2, 2, 1, 8, max_position_embeddings=64)
    hf.save(tmp_path / "base", architecture, llama.init_params(architecture, jax.random.key(0)), tokenizer=tokenizer)
    train = {"batch_size": 4, "learning_rate": 1e-2}
    tree = {
        "name": "demo",
        "output": str(tmp_path / "run"),
        "cache": str(tmp_path / "cache"),
        "baselines": ["finetune_all"],
        "engine": {"max_len": 65},
        "finetune": {"steps": 1, **train, "learning_rate": 1e-5},
        "model": {"base": str(tmp_path / "base"), "prepare": {"steps": 12, **train}},
        **TASKS,
    }

    def train_all(*overrides):
        config = load_config(tree, overrides)
        loaded, stages = [], []
        words = {"mbpp": "one", "dbbench": "two"}

        def data(task):
            return TrainingData(IDENTITIES[task], lambda: loaded.append(task) or conversations(words[task]))

        models = Models(config, model_folders(config, IDENTITIES), print)
        examples = Examples(models, {task: data(task) for task in words})
        Trainer(config, models, examples, lambda stage, *rest: stages.append(stage), print).train()
        return models, loaded, stages

    return train_all


def distance(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return float(np.sqrt(sum(np.sum((np.asarray(a) - np.asarray(b)) ** 2) for a, b in pairs)))


@pytest.mark.exhaustive
def test_experts_and_baselines_start_from_it(trained):
    models, loaded, stages = trained()
    assert loaded == ["mbpp", "dbbench"]  # once, although the experts need them too
    assert list(dict.fromkeys(stages)) == ["prepare", "expert mbpp", "expert dbbench", "finetune all"]
    original = models.load_original()
    step = distance(models.base, original)
    assert step > 0.1
    for model in (*models.experts, models.load_baseline("finetune_all")):
        assert 0 < distance(model, models.base) < 0.05 * step
    assert models.folders.base.name.startswith("prepared-")
    digests = input_digests(models.folders, [])
    assert sorted(digests) == ["base", "expert/dbbench", "expert/mbpp", "prepared_base"]
    assert len({*digests.values()}) == 4
    # what is cached is not trained again
    again, loaded, stages = trained("search.generations=3")
    assert not loaded
    assert not stages
    assert all((a == b).all() for (_, a), b in zip(tree_paths(again.base), jax.tree.leaves(models.base), strict=True))


def test_a_task_without_a_share_is_not_loaded_for_it(trained):
    models, loaded, _ = trained("model.prepare.shares={dbbench: 1}", "baselines=[]")
    assert loaded == ["dbbench", "mbpp"]
    assert models.folders.base.exists()


def test_a_missing_prepared_base_is_named(tmp_path):
    config = load_config({"name": "demo", "cache": str(tmp_path), **TASKS}, ["model.prepare={}"])
    models = Models(config, model_folders(config, IDENTITIES), print)
    with pytest.raises(
        InputError, match=r"expected a model for prepared_base, got none in .*prepared-.*; run `cycleqd finetune"
    ):
        models.ensure_loaded()
