"""Models that are given: adapters, padded vocabularies, strangers."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from cycleqd_jax.cli import main
from cycleqd_jax.config import load_config
from cycleqd_jax.models import llama
from cycleqd_jax.models import tokenizer as chat
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import load_tokenizer, open_checkpoint
from cycleqd_jax.runs.inputs import models as module
from cycleqd_jax.runs.inputs.digests import folder_digest
from cycleqd_jax.runs.inputs.models import Models, model_folders
from cycleqd_jax.runs.inputs.resolve import check_resources, input_digests, resolve
from cycleqd_jax.types import Adapter, InputError, tree_paths

TEXTS = ["What is the capital of France?", "Paris, of course. 1 + 1 = 2"] * 3


def write_adapter(folder, config, seed, scale=0.02, rank=2):
    """A LoRA adapter of q and down in PEFT's layout."""
    rng = np.random.default_rng(seed)
    heads = config.num_attention_heads * config.head_dim
    tensors = {}
    for i in range(config.num_hidden_layers):
        for name, out, into in (
            ("self_attn.q_proj", heads, config.hidden_size),
            ("mlp.down_proj", config.hidden_size, config.intermediate_size),
        ):
            stem = f"base_model.model.model.layers.{i}.{name}"
            tensors[f"{stem}.lora_A.weight"] = rng.normal(size=(rank, into)).astype(np.float32)
            tensors[f"{stem}.lora_B.weight"] = (scale * rng.normal(size=(out, rank))).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": ["q_proj", "down_proj"],
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture
def folder(tmp_path):
    tokenizer = chat.train_tiny_tokenizer(TEXTS, 300)
    config = llama.LlamaConfig(tokenizer.vocab_size, 32, 48, 2, 4, 2, 8, max_position_embeddings=128)
    base = llama.init_params(config, jax.random.key(0))
    hf.save(tmp_path / "base", config, base, tokenizer=tokenizer)
    near = jax.tree.map(lambda leaf: leaf * 1.01, base)
    hf.save(tmp_path / "near", config, near, tokenizer=tokenizer)
    hf.save(tmp_path / "nearer", config, jax.tree.map(lambda leaf: leaf * 1.005, base), tokenizer=tokenizer)
    hf.save(tmp_path / "stranger", config, llama.init_params(config, jax.random.key(1)), tokenizer=tokenizer)
    padded = config.replace(vocab_size=config.vocab_size + 7)
    hf.save(tmp_path / "padded", padded, llama.init_params(padded, jax.random.key(0)), tokenizer=tokenizer)
    write_adapter(tmp_path / "lora-a", config, 1, scale=0.002)
    write_adapter(tmp_path / "lora-b", config, 2, scale=0.002, rank=3)
    return tmp_path


def models_of(folder, a, b, *overrides):
    tree = {
        "name": "given",
        "output": str(folder / "run"),
        "cache": str(folder / "cache"),
        "tasks": [{"name": "mbpp"}, {"name": "dbbench"}],
        "engine": {"max_len": 128},
        "model": {"base": str(folder / "base"), "experts": {"mbpp": str(folder / a), "dbbench": str(folder / b)}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    lines = []
    inputs = resolve(load_config(folder / "config.yaml", overrides))
    check_resources(inputs, lines.append)
    return Models(inputs.config, model_folders(inputs.config, {}), lines.append), lines


@pytest.mark.exhaustive
def test_an_expert_of_another_base_gets_a_warning(folder):
    models, lines = models_of(folder, "near", "stranger")
    assert len(models.experts) == 2
    assert len(lines) == 1
    assert f"the expert {folder / 'stranger'} differs from the base {folder / 'base'} by 1.4" in lines[0]
    models, lines = models_of(folder, "near", "nearer")
    assert len(models.experts) == 2
    assert not lines


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["mbpp", "dbbench"])
def test_only_a_new_expert_of_another_base_is_refused(folder, name):
    folders = models_of(folder, "near", "stranger")[0].folders
    models = Models(load_config(folder / "config.yaml"), folders, lambda line: None, related=(name,))
    if name == "mbpp":
        assert len(models.experts) == 2
        return
    with pytest.raises(InputError, match=r"expected an expert that was fine-tuned from the base .* differs from it by 1.4"):
        _ = models.experts


@pytest.mark.exhaustive
def test_experts_that_are_equal_are_named(folder):
    models, lines = models_of(folder, "near", "near")
    assert len(models.experts) == 2
    (line,) = lines
    assert f"the expert of task 'dbbench' ({folder / 'near'}) equals the expert of task 'mbpp' ({folder / 'near'}) bit" in line
    shutil.copytree(folder / "base", folder / "copy")
    models, lines = models_of(folder, "copy", "near")
    assert len(models.experts) == 2
    (line,) = lines
    assert f"the expert of task 'mbpp' ({folder / 'copy'}) equals the base {folder / 'base'} bit for bit" in line


@pytest.mark.exhaustive
def test_an_adapter_that_changes_nothing_is_named(folder):
    config = open_checkpoint(folder / "base").config
    write_adapter(folder / "lora-0", config, 1, scale=0.0)  # as PEFT begins
    shutil.copytree(folder / "lora-a", folder / "lora-c")
    for pair, named in ((("lora-0", "lora-a"), "lora-0) equals the base"), (("lora-a", "lora-c"), "lora-c) equals the expert")):
        models, lines = models_of(folder, *pair)
        assert len(models.experts) == 2
        (line,) = lines
        assert named in line


def test_an_expert_that_differs_in_a_norm_only_is_no_copy(folder):
    config, params = hf.load(folder / "base")
    hf.save(folder / "norm", config, params | {"norm": params["norm"] * 1.5}, tokenizer=load_tokenizer(folder / "base"))
    models, lines = models_of(folder, "near", "norm")
    assert len(models.experts) == 2
    assert not lines


@pytest.mark.exhaustive
def test_tensors_of_another_dtype_are_named(folder):
    config, params = hf.load(folder / "base", dtype="bfloat16")
    for name, scale in (("half", 1.0), ("half-a", 1.01), ("half-b", 1.02)):
        scaled = jax.tree.map(lambda leaf: leaf * leaf.dtype.type(scale), params)
        hf.save(folder / name, config, scaled, tokenizer=load_tokenizer(folder / "base"))
    tensors = load_file(folder / "half-a" / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)
    save_file(tensors, folder / "half-a" / "model.safetensors")
    override = f"model.base={folder / 'half'}"
    models, lines = models_of(folder, "half-a", "half-b", override)
    assert len(models.experts) == 2
    (line,) = lines
    assert f"1 tensors of {folder / 'half-a'}, such as model.norm.weight, are stored in another dtype" in line
    assert "rounded to bfloat16; model.dtype=float32 keeps them" in line
    models, lines = models_of(folder, "half-a", "half-b", override, "model.dtype=float32")
    assert len(models.experts) == 2
    assert not lines


@pytest.mark.parametrize("tied", [pytest.param(True, marks=pytest.mark.exhaustive), False])
def test_an_expert_that_stores_the_embedding_as_its_head(folder, tied):
    """Base tied and expert untied, or the other way round, where the head is the embedding in both."""
    config, params = hf.load(folder / "base")
    tokenizer = load_tokenizer(folder / "base")
    for name, scale, own in (("one", 1.0, not tied), ("two", 1.01, tied), ("three", 1.02, not tied)):
        tree = jax.tree.map(lambda leaf: leaf * scale, params) | {"lm_head": params["embed_tokens"].T * scale}
        if not own:
            tree.pop("lm_head")
        hf.save(folder / name, config.replace(tie_word_embeddings=not own), tree, tokenizer=tokenizer)
    models, lines = models_of(folder, "two", "three", f"model.base={folder / 'one'}")
    assert models.config.tie_word_embeddings == tied
    for expert, scale in zip(models.experts, (1.01, 1.02), strict=True):
        assert ("lm_head" in expert) != tied
        np.testing.assert_allclose(expert["embed_tokens"], params["embed_tokens"] * scale, rtol=1e-6)
    assert not lines


def test_an_expert_with_a_head_of_its_own_is_refused_with_a_way_out(folder):
    config, params = hf.load(folder / "base")
    tied = {name: leaf for name, leaf in params.items() if name != "lm_head"}
    tokenizer = load_tokenizer(folder / "base")
    hf.save(folder / "tied", config.replace(tie_word_embeddings=True), tied, tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"got a head of its own .*; save the base with tie_word_embeddings false"):
        models_of(folder, "tied", "near", f"model.base={folder / 'tied'}")
    with pytest.raises(InputError, match=r"got True in the expert .*tied; save the expert with tie_word_embeddings false"):
        models_of(folder, "near", "tied")
    # a file that stores another head than its config says
    content = json.loads((folder / "near" / "config.json").read_text(encoding="utf-8"))
    (folder / "near" / "config.json").write_text(json.dumps(content | {"tie_word_embeddings": True}), encoding="utf-8")
    with pytest.raises(InputError, match=r"lm_head.weight to equal .* whose config ties them"):
        models_of(folder, "tied", "near", f"model.base={folder / 'tied'}")


def test_adapters_stay_adapters(folder):
    models, lines = models_of(folder, "lora-a", "lora-b")
    assert all(isinstance(expert, Adapter) for expert in models.experts)
    merged = {task: models.expert_params(task) for task in ("mbpp", "dbbench")}
    assert (np.asarray(merged["mbpp"]["layers"]["attn"]["k"]) == np.asarray(models.base["layers"]["attn"]["k"])).all()
    assert (np.asarray(merged["mbpp"]["layers"]["attn"]["q"]) != np.asarray(models.base["layers"]["attn"]["q"])).any()
    assert not lines


def test_an_adapter_of_another_base_gets_a_warning(folder):
    config = open_checkpoint(folder / "base").config
    write_adapter(folder / "lora-far", config, 3, scale=1.0)
    settings = json.loads((folder / "lora-far" / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = "mistralai/Mistral-7B-v0.1"
    (folder / "lora-far" / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    models, lines = models_of(folder, "lora-a", "lora-far")
    assert len(models.experts) == 2
    assert [("Mistral-7B" in line, "× the norm" in line) for line in lines] == [(True, False), (False, True)]


def test_vocabularies_are_cut_when_asked(folder):
    size = json.loads((folder / "base" / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    with pytest.raises(InputError, match=f"model.vocab_size={size}"):
        models_of(folder, "near", "padded")
    models, _ = models_of(folder, "near", "padded", f"model.vocab_size={size}")
    assert models.config.vocab_size == size
    assert [expert["lm_head"].shape for expert in models.experts] == [(32, size)] * 2


def test_the_content_of_a_model_is_read_once(folder, monkeypatch):
    read = []
    monkeypatch.setattr(module, "folder_digest", lambda path, cache: read.append(path) or folder_digest(path))
    models, _ = models_of(folder, "near", "near")
    assert read == [folder / "base"]  # for the names of cached models
    for _ in range(2):
        for name in models.folders.search:
            assert models.folders.digest(name) == folder_digest(models.folders.search[name])
    assert read == [folder / "base", folder / "near", folder / "near"]


def test_a_base_without_a_template_needs_a_tokenizer(folder):
    (folder / "base" / "chat_template.jinja").unlink()
    for name in ("near", "nearer"):
        (folder / name / "chat_template.jinja").unlink()
    models, _ = models_of(folder, "near", "nearer")
    with pytest.raises(InputError, match=r"a chat template with the tokenizer in .*base.*; or set model\.tokenizer to a model"):
        models.check_tokenizer()
    models, _ = models_of(folder, "near", "nearer", f"model.tokenizer={folder / 'stranger'}")
    models.check_tokenizer()


def test_the_chosen_tokenizer_is_part_of_the_inputs(folder):
    def digests(*overrides):
        return input_digests(models_of(folder, "near", "nearer", *overrides)[0].folders, [])

    assert sorted(digests()) == ["base", "expert/dbbench", "expert/mbpp"]
    chosen = f"model.tokenizer={folder / 'stranger'}"
    before = digests(chosen)
    save_file({}, folder / "stranger" / "model.safetensors")  # no part of the tokenizer
    assert digests(chosen) == before
    template = folder / "stranger" / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8") + " ", encoding="utf-8")
    after = digests(chosen)
    assert {name for name in after if after[name] != before[name]} == {"tokenizer"}


def test_a_disk_without_space_is_refused_early(folder, monkeypatch):
    import shutil
    from types import SimpleNamespace

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(InputError, match=r"expected \S+ GB of space for the evolved model in .*, got 1e-06 GB; free"):
        models_of(folder, "near", "near")


@pytest.mark.e2e
def test_a_run_with_adapters(finished, tmp_path, capsys):
    base = next((finished / "cache" / "models").glob("base-*"))
    config = open_checkpoint(base).config
    write_adapter(tmp_path / "lora-a", config, 1, scale=0.01)
    write_adapter(tmp_path / "lora-b", config, 2, scale=0.01, rank=4)
    tree = yaml.safe_load((finished / "config.yaml").read_text(encoding="utf-8"))
    tree["tasks"] = [
        task | {"train_size": 4, "validation_size": 4, "test_size": 4}
        for task in tree["tasks"]
        if task["name"] != "os_interaction"
    ]
    tree |= {"output": str(tmp_path / "run"), "cache": str(tmp_path / "cache"), "baselines": []}
    tree["search"] = {"generations": 2, "batch_size": 2, "bounds": {"mbpp": [0, 1], "dbbench": [0, 1]}}
    tree["model"] = {"base": str(base), "experts": {"mbpp": str(tmp_path / "lora-a"), "dbbench": str(tmp_path / "lora-b")}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert main(["run", str(tmp_path / "config.yaml")]) == 0
    results = json.loads((tmp_path / "run" / "tables" / "results.json").read_text(encoding="utf-8"))
    assert {"base", "expert/mbpp", "expert/dbbench", "uniform_merge", "cycleqd"} <= set(results["methods"])
    exported, params = hf.load(tmp_path / "run" / "model")
    original = hf.load(base)[1]
    changed = {path for path, leaf in tree_paths(params) if (leaf != dict(tree_paths(original))[path]).any()}
    assert changed == {"layers/attn/q", "layers/mlp/down"}
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert str(tmp_path / "lora-a") in card
    assert exported.vocab_size == config.vocab_size
