"""Configs and models that are refused in one sentence, before any work."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from cycleqd_jax.cli import main

from .conftest import tiny_config, write_models

BAD = {
    "unknown method": ({"merge_method": "passthrough"}, "passthrough"),
    "no method": ({"merge_method": None}, "merge_method"),
    "unknown key": ({"merge_methods": "ties"}, "'merge_methods'"),
    "modules": ({"modules": {}}, "'modules'"),
    "tokenizer": ({"tokenizer": {"source": "base"}}, "'tokenizer'"),
    "chat template": ({"chat_template": "auto"}, "'chat_template'"),
    "union of tokenizers": ({"tokenizer_source": "union"}, "'union'"),
    "dtype": ({"dtype": "int8"}, "'int8'"),
    "out dtype": ({"out_dtype": "float64"}, "'float64'"),
    "no base": ({"base_model": None}, "base_model"),
    "no models": ({"models": None}, "neither"),
    "models and slices": ({"slices": [{"sources": []}]}, "models and slices"),
    "parameter of another method": ({"parameters": {"weight": 1, "t": 0.5}}, "'t'"),
    "mistyped parameter": ({"parameters": {"wieght": 1}}, "'wieght'"),
    "epsilon": ({"parameters": {"weight": 1, "epsilon": 0.1}}, "'epsilon'"),
    "no weight": ({"parameters": {"density": 0.5}}, "expected a weight"),
    "zero weights": ({"parameters": {"weight": 0}}, "other than zero"),
    "text as weight": ({"parameters": {"weight": "much"}}, "'much'"),
    "an integer that no float holds": ({"parameters": {"weight": 10**400}}, "a number"),
    "NaN as weight": ({"parameters": {"weight": float("nan")}}, "nan"),
    "number as truth": ({"parameters": {"weight": 1, "normalize": 0.5}}, "true or false"),
    "density of zero": ({"parameters": {"weight": 1, "density": 0}}, "density"),
    "density above one": ({"parameters": {"weight": 1, "density": [0.5, 1.5]}}, "density"),
    "filter without value": ({"parameters": {"weight": [{"filter": "mlp"}]}}, "no value"),
    "filter with other keys": ({"parameters": {"weight": [{"filtr": "mlp", "value": 1}]}}, "'filtr'"),
    "filters and numbers": ({"parameters": {"weight": [{"value": 1}, 2]}}, "got both"),
    "filter that leaves tensors": ({"parameters": {"weight": [{"filter": "mlp", "value": 1}]}}, "expected a weight"),
}


@pytest.fixture
def refused(tmp_path, capsys):
    def check(keys, *named):
        path = tmp_path / "merge.yml"
        path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
        assert main(["merge", str(path), str(tmp_path / "out")]) == 2
        *progress, error = capsys.readouterr().err.splitlines()
        assert all(line.startswith("merge: ") for line in progress), progress
        assert error.startswith("cycleqd: expected ")
        assert " got " in error
        assert "; " in error
        assert not error.endswith(".")
        for part in named:
            assert part in error
        assert not (tmp_path / "out").exists()
        return error

    return check


def recipe_of(folders, /, **changes):
    base, a, b, _ = folders
    keys = {"merge_method": "ties", "base_model": base, "models": [{"model": a}, {"model": b}], "parameters": {"weight": 1.0}}
    return {**keys, **changes}


@pytest.mark.parametrize("case", BAD)
def test_configs(models, refused, case):
    changes, named = BAD[case]
    refused(recipe_of(models, **changes), named)


def test_models_of_a_config(models, refused, tmp_path):
    base, a, b, _ = models
    refused(recipe_of(models, models=[{"model": a}, {"model": a}]), "twice")
    refused(recipe_of(models, models=[{"model": a}, {"model": f"{a}/"}]), "twice")
    refused(recipe_of(models, models=[{"model": base}]), "at least one model")
    refused(recipe_of(models, models=[{"name": a}]), "models[0]")
    refused(recipe_of(models, models=[{"model": {"path": a}}]), "models[0].model")
    refused(recipe_of(models, models=[{"model": f"{a}+lora"}]), "LoRA")
    refused(recipe_of(models, models=[{"model": "/nowhere/model"}]), "/nowhere/model")
    refused(recipe_of(models, models=[{"model": a, "layer_range": [0, 3]}]), "'layer_range'")
    refused(recipe_of(models, models=[{"model": a, "parameters": {"lambda": 1}}]), "'lambda'")
    t = {"merge_method": "slerp", "parameters": {"t": 0.5}}
    refused(recipe_of(models, **t), "two models for slerp")
    refused(recipe_of(models, **t, models=[{"model": base}]), "two models for slerp")
    refused(recipe_of(models, merge_method="slerp", models=[{"model": a}], parameters=None), "expected a t")
    opposite = [{"model": a, "parameters": {"weight": 1}}, {"model": b, "parameters": {"weight": [-1, 0]}}]
    refused(recipe_of(models, merge_method="linear", base_model=None, models=opposite, parameters=None), "sum other than zero")
    refused(recipe_of(models, merge_method="linear", models=opposite, parameters=None), f"weight of {base}")


def test_slices(models, refused):
    base, a, b, _ = models

    def sliced(*ranges, **more):
        sources = [{"model": name, "layer_range": span} for name, span in zip((base, a), ranges, strict=True)]
        return recipe_of(models, models=None, slices=[{"sources": sources, **more}])

    refused(sliced([0, 2], [0, 2]), "layer_range [0, 3]")
    refused(sliced([0, 3], [1, 4]), "[1, 4]")
    refused(sliced([0, 3], "all"), "layer_range")
    refused(sliced([0, 3], [0, 3], residual_weight=0.5), "'residual_weight'")
    refused({**sliced([0, 3], [0, 3]), "slices": [{"sources": []}, {"sources": []}]}, "2 slices")
    refused({**sliced([0, 3], [0, 3]), "base_model": b}, "among the sources")


def test_files(models, tmp_path, capsys):
    (tmp_path / "bad.yml").write_text("models: [")
    (tmp_path / "list.yml").write_text("- 1")
    (tmp_path / "date.yml").write_text("merge_method: 2020-13-45")
    for name in ("missing.yml", "bad.yml", "list.yml", "date.yml"):
        assert main(["merge", str(tmp_path / name), str(tmp_path / "out")]) == 2
        assert name in capsys.readouterr().err


def test_the_place_of_the_result(models, tmp_path, capsys):
    base, *_ = models
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump(recipe_of(models)))
    before = {file: file.read_bytes() for file in Path(base).iterdir()}
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    for out, named in ((base, "no model of the merge"), (tmp_path / "thesis", "thesis.tex"), (path, "merge.yml")):
        assert main(["merge", str(path), str(out)]) == 2
        assert named in capsys.readouterr().err
    assert {file: file.read_bytes() for file in Path(base).iterdir()} == before


def changed(folder, target, change):
    target.mkdir()
    for path in Path(folder).iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors")
    return str(target)


def test_models_that_differ(models, refused, tmp_path):
    base, a, _, _ = models

    def rename(tensors):
        tensors["model.layers.0.mlp.shared.weight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")

    other = changed(a, tmp_path / "renamed", rename)
    refused(
        recipe_of(models, models=[{"model": other}]), f"model.layers.0.mlp.up_proj.weight only in {base}",
        f"model.layers.0.mlp.shared.weight only in {other}",
    )  # fmt: skip
    wide = write_models(tmp_path / "wide", tiny_config(vocab_size=308), count=0)[0]
    refused(recipe_of(models, models=[{"model": wide}]), f"[300, 32] in {base}", f"[308, 32] in {wide}")
    deep = write_models(tmp_path / "deep", tiny_config(num_hidden_layers=4), count=0)[0]
    refused(recipe_of(models, models=[{"model": deep}]), "model.layers.3", f"only in {deep}")
    kind = changed(a, tmp_path / "kind", lambda tensors: None)
    config = json.loads((Path(kind) / "config.json").read_text())
    (Path(kind) / "config.json").write_text(json.dumps({**config, "model_type": "qwen3"}))
    refused(recipe_of(models, models=[{"model": kind}]), f"llama in {base} and qwen3 in {kind}")
    (Path(kind) / "config.json").write_text(json.dumps({**config, "num_attention_heads": 8, "num_key_value_heads": 4}))
    refused(recipe_of(models, models=[{"model": kind}]), f"num_attention_heads, got 4 in {base} and 8 in {kind}")


def test_weights_that_are_not_finite(models, refused, tmp_path):
    def spoil(tensors):
        tensors["model.norm.weight"][0] = np.nan

    bad = changed(models[1], tmp_path / "bad", spoil)
    refused(recipe_of(models, models=[{"model": bad}]), "model.norm.weight", bad)


def test_quantised_weights(models, refused, tmp_path):
    def quantise(tensors):
        tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)

    bad = changed(models[1], tmp_path / "bad", quantise)
    refused(recipe_of(models, models=[{"model": bad}]), "I8", "model.norm.weight")
    plain = changed(models[1], tmp_path / "plain", lambda tensors: None)
    config = json.loads((Path(plain) / "config.json").read_text())
    (Path(plain) / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "bitsandbytes"}}))
    refused(recipe_of(models, base_model=plain), "quantization_config", plain)
    refused(recipe_of(models, models=[{"model": plain}]), "quantization_config", plain)


def test_files_that_cannot_be_copied_are_found_before_the_work(models, tmp_path, monkeypatch, capsys):
    def denied(source, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(source))

    monkeypatch.setattr(shutil, "copyfile", denied)
    path = tmp_path / "merge.yml"
    path.write_text(yaml.safe_dump(recipe_of(models)))
    assert main(["merge", str(path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "got Permission denied in " in error
    assert "merge: 1" not in error
    assert [file.name for file in tmp_path.iterdir()] == ["merge.yml"]


def test_other_tokenizers(models, refused, tmp_path):
    other = changed(models[1], tmp_path / "other", lambda tensors: None)
    path = Path(other) / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    path.write_text(json.dumps(tokenizer))
    refused(recipe_of(models, models=[{"model": other}], tokenizer_source="base"), "one id for every token", other)
    path.write_text("{")
    refused(recipe_of(models, models=[{"model": other}], tokenizer_source="base"), f"expected a tokenizer in {path}")


def test_an_untied_head_of_its_own_beside_a_tied_one(models, refused, tmp_path):
    head = lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] * 2})  # noqa: E731
    own = changed(models[1], tmp_path / "own", head)
    config = json.loads((Path(own) / "config.json").read_text())
    (Path(own) / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    refused(recipe_of(models, models=[{"model": own}]), f"embed_tokens.weight in {own}, as in the first model", "own; save the")


def test_lists_over_layers_need_layers(refused, tmp_path):
    for name in ("base", "expert"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file({"encoder.weight": np.ones((4, 4), np.float32)}, tmp_path / name / "model.safetensors")
    keys = {"merge_method": "slerp", "base_model": str(tmp_path / "base"), "models": [{"model": str(tmp_path / "expert")}]}
    refused({**keys, "parameters": {"t": [0, 1]}}, "expected models with layers")
