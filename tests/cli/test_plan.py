"""``cycleqd plan``: its arguments and its output."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from cycleqd_jax.cli import main
from cycleqd_jax.models import llama
from cycleqd_jax.models import tokenizer as chat
from cycleqd_jax.models.files import hf

CONFIGS = Path(__file__).parents[2] / "configs"


def planned(capsys, *args) -> dict:
    capsys.readouterr()
    assert main(["plan", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.exhaustive
def test_the_paper_setting_without_its_weights(capsys):
    facts = planned(capsys, CONFIGS / "llama3_8b_cs.yaml", "--devices", 8)
    assert facts["parameters"] == 8_030_261_248
    assert facts["fits"]
    assert facts["mesh"] == {"population": 1, "fsdp": 1, "tensor": 8}
    assert facts["replies"] == 189 + 180 * 6 + 85 * 5
    assert facts["generations"] == 1200
    search, measurement = facts["evaluations"]  # the paper has no validation problems
    assert (search["models"], search["problems"], search["replies"]) == (1203, 189 + 180 + 85, facts["replies"])
    assert (measurement["models"], measurement["problems"]) == (1 + 3 + 1 + 2, 2 * (189 + 180 + 85))
    assert search["seconds"] == pytest.approx(facts["seconds_per_generation"] * 1203)
    assert [stage["name"] for stage in facts["stages"]] == ["load", "basis", "express", "decode", "evaluate"]
    one = planned(capsys, CONFIGS / "llama3_8b_cs.yaml")
    assert not one["fits"]
    assert one["seconds_per_generation"] > facts["seconds_per_generation"]
    short = planned(capsys, CONFIGS / "llama3_8b_cs.yaml", "--reply-tokens", 100, "--devices", 8)
    assert short["seconds_per_generation"] < facts["seconds_per_generation"]


def test_advice_names_another_mesh(capsys):
    args = ["plan", str(CONFIGS / "llama3_8b_cs.yaml"), "--devices", "8"]
    assert main([*args, "--mesh", "8,1,1"]) == 0
    text = capsys.readouterr().out
    assert "--mesh 1,1,8 (or leave --mesh out)" in text
    assert "only other devices help" not in text
    assert "7 of 8 groups of devices are idle: search.batch_size is 1" in text
    assert "for this mesh, run cycleqd with mesh.population=8 mesh.fsdp=1 mesh.tensor=1" in text
    facts = planned(capsys, *args[1:], "--mesh", "1,8,1")
    for line in facts["alternatives"]:
        words = line.replace("--mesh ", "--mesh=").replace("--devices ", "--devices=").replace("--device ", "--device=").split()
        given = {"--mesh": "1,8,1", "--devices": "8"} | dict(word.split("=") for word in words)
        assert planned(capsys, args[1], *(f"{name}={value}" for name, value in given.items()))["fits"], line


@pytest.mark.exhaustive
def test_the_mesh_of_the_config_is_planned(capsys):
    config = CONFIGS / "llama3_8b_cs.yaml"
    facts = planned(capsys, config, "mesh.population=2", "mesh.fsdp=2", "mesh.tensor=4", "search.batch_size=2")
    assert facts["devices"] == 16
    assert facts["mesh"] == {"population": 2, "fsdp": 2, "tensor": 4}
    assert not any("mesh" in note for note in facts["notes"])
    rest = planned(capsys, config, "mesh.fsdp=2", "mesh.tensor=-1", "--devices", 8)
    assert rest["mesh"] == {"population": 1, "fsdp": 2, "tensor": 4}
    asked = planned(capsys, config, "mesh.tensor=4", "--mesh", "1,8,1")
    assert asked["mesh"] == {"population": 1, "fsdp": 8, "tensor": 1}
    assert "for this mesh, run cycleqd with mesh.population=1 mesh.fsdp=8 mesh.tensor=1" in asked["notes"]
    part = planned(capsys, config, "mesh.tensor=4", "--devices", 8)
    assert part["devices"] == 4  # as cycleqd run does


def test_one_device_needs_no_note_about_several(capsys):
    notes = planned(capsys, CONFIGS / "llama3_8b_cs.yaml")["notes"]
    assert notes == ["experts that are not on this machine, counted as full weights: mbpp, dbbench, os_interaction"]


@pytest.mark.exhaustive
def test_experts_that_are_adapters(capsys, tmp_path):
    tree = yaml.safe_load((CONFIGS / "llama3_8b_cs.yaml").read_text("utf-8"))
    for name in tree["model"]["experts"]:
        tree["model"]["experts"][name] = str(tmp_path / name)
        (tmp_path / name).mkdir()
        modules = {"target_modules": ["q_proj"], "r": 2, "lora_alpha": 4, "peft_type": "LORA", "bias": "none"}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(modules))
        prefix = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
        tensors = {}
        for i in range(32):
            tensors[prefix.format(i, "A")] = np.zeros((2, 4096), np.float16)
            tensors[prefix.format(i, "B")] = np.zeros((4096, 2), np.float16)
        save_file(tensors, tmp_path / name / "adapter_model.safetensors")
    (tmp_path / "lora.yaml").write_text(yaml.safe_dump(tree))
    facts = planned(capsys, tmp_path / "lora.yaml")
    parts = next(stage["device"] for stage in facts["stages"] if stage["name"] == "express")
    assert parts["experts"] == 0
    assert parts["bases"] == 4 * 3 * 2 * 32 * (4096 + 4096 + 1)
    assert facts["notes"] == []
    tree["model"]["experts"]["mbpp"] = "owner/model"
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump(tree))
    assert main(["plan", str(tmp_path / "mixed.yaml")]) == 2
    assert "set genome.densify=true" in capsys.readouterr().err
    facts = planned(capsys, tmp_path / "mixed.yaml", "genome.densify=true")
    assert facts["notes"] == ["experts that are not on this machine, counted as full weights: mbpp"]


@pytest.mark.exhaustive
def test_70b_does_not_fit_and_the_text_says_why(capsys):
    assert main(["plan", str(CONFIGS / "llama3_70b_cs.yaml"), "--devices", "8"]) == 0
    text = capsys.readouterr().out
    assert "it does not fit: 80.7 GB usable per device" in text
    assert "express needs 115.1 GB, 52.9 GB of it experts" in text
    assert "base, 3 experts and a child alone need 88.2 GB: only other devices help" in text
    assert text.endswith("each line alone:\n  --devices 16\n  --device h200\n")


def test_a_model_of_the_user(capsys, tmp_path):
    tokenizer = chat.train_tiny_tokenizer(["some text", "and more"] * 3, 300)
    config = llama.LlamaConfig(tokenizer.vocab_size, 32, 48, 2, 4, 2, 8, max_position_embeddings=256)
    hf.save(tmp_path / "base", config, llama.init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    tree = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text("utf-8"))
    tree["model"] = {"base": str(tmp_path / "base")}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(tree))
    from_headers = planned(capsys, tmp_path / "own.yaml")
    assert from_headers["parameters"] == llama.num_params(config)
    file = tmp_path / "base" / "config.json"
    from_file = planned(capsys, tmp_path / "own.yaml", "model.base=/no/such/folder", "--model-config", file)
    assert from_file["stages"] == from_headers["stages"]
    assert main(["plan", str(tmp_path / "own.yaml"), "model.base=/no/such/folder"]) == 2
    assert "--model-config" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_the_quickstart_on_this_machine(capsys):
    if len(jax.devices()) < 2:
        pytest.skip("needs 2 (simulated) devices")
    args = ("plan", str(CONFIGS / "quickstart.yaml"), "--device", "cpu", "--devices", "2", "--mesh", "2,1,1", "--compile")
    assert main(args) == 0
    text = capsys.readouterr().out
    assert "it fits" in text
    assert "XLA: " in text
    assert "  search: at most 99 models on 96 problems, " in text
    assert "  selection: at most 16 models on 96 problems, " in text
    assert "  measurement: at most 10 models on 384 problems, " in text
    assert "collectives: none" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--mesh", "1,8"], "expected --mesh population,fsdp,tensor"),
        (["--mesh", "1,1,4"], "the number of devices, got 1,1,4 in --mesh"),
        (["--mesh", "8,1,1", "--devices", "7"], "the number of devices, got 8,1,1 in --mesh"),
        (["--mesh", "1,1,3", "--devices", "3"], "divide by the 3 devices of mesh axis 'tensor'"),
        (["--devices", "0"], "expected at least one device"),
        (["mesh.tensor=16"], "expected a mesh population × fsdp × tensor of 8 devices, got 1 × 1 × 16"),
        (["--devices", "7"], "expected a number of devices that divides"),
        (["--reply-tokens", "600"], "expected --reply-tokens from 1 to the 512"),
        (
            ["engine.max_len=9000"],
            "expected engine.max_len of at most 8192, the positions of",
        ),
        (
            ["tasks.mbpp.kind=bigcodebench", "tasks.mbpp.train=null"],
            "expected a train file for task 'mbpp', got none",
        ),
        (["tasks.mbpp.train_size=null", "tasks.mbpp.train=absent.jsonl"], "no file at absent.jsonl"),
        (["genome={space: dense}"], "expected genome.space to be 'expert'"),
    ],
)
def test_bad_input(args, message, capsys):
    assert main(["plan", str(CONFIGS / "llama3_8b_cs.yaml"), "--devices", "8", *args]) == 2
    assert message in capsys.readouterr().err


def test_without_the_cuda_plugin(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["plan", str(CONFIGS / "llama3_8b_cs.yaml"), "--devices", "8", "--compile"]) == 2
    assert "pip install 'cycleqd_jax[cuda12]'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs pip install 'cycleqd_jax[cuda12]'")
@pytest.mark.parametrize(("name", "devices", "fits"), [("llama3_8b_cs", 8, True), ("llama3_70b_cs", 8, False)])
def test_the_command_compiles(name, devices, fits, capsys):
    facts = planned(capsys, CONFIGS / f"{name}.yaml", "--devices", devices, "--compile")
    assert facts["fits"] is fits
    assert {stage["source"] for stage in facts["stages"] if stage["name"] in ("basis", "express", "decode")} == {"XLA"}
    estimated = planned(capsys, CONFIGS / f"{name}.yaml", "--devices", devices)
    for compiled, guess in zip(facts["stages"], estimated["stages"], strict=True):
        assert guess["total"] == pytest.approx(compiled["total"], rel=0.05)
    moved = [c for program in facts["programs"] for c in program["collectives"] if c["kind"] != "all-reduce"]
    assert all(c["bytes"] <= 4 * 64 * 128256 for c in moved)  # logits, where tokens are drawn: no message carries weights


def image_config(tmp_path, **changes) -> Path:
    sizes = {"train_size": 16, "validation_size": 8, "test_size": 20}
    tasks = [{"name": name, "kind": "segmentation", "train": str(tmp_path / name)} | sizes for name in ("polyp", "skin")]
    tree = {"name": "pairs", "tasks": tasks, "model": {"base": "facebook/sam-vit-huge"}, "search": {"batch_size": 4}}
    file = tmp_path / "pairs.yaml"
    file.write_text(yaml.safe_dump(tree | changes))
    return file


@pytest.mark.exhaustive
def test_vit_h_without_its_weights_and_images(capsys, tmp_path):
    config = image_config(tmp_path)
    facts = planned(capsys, config, "--devices", 4)
    assert (facts["parameters"], facts["mesh"]["population"], facts["fits"]) == (641_090_864, 4, True)
    assert facts["images"] == {"child": 32, "embedded": 2 * (16 + 8 + 20)}
    assert [stage["name"] for stage in facts["stages"]] == ["load", "basis", "embed", "express", "segment"]
    search, selection, measurement = facts["evaluations"]
    assert (search["problems"], selection["problems"], measurement["problems"]) == (32, 16, 72)
    whole = planned(capsys, config, "--devices", 4, "masks={trained: all}")
    assert whole["images"]["embedded"] == 0
    assert whole["seconds_per_generation"] > 100 * facts["seconds_per_generation"]
    assert main(["plan", str(config), "masks={trained: all, batch_size: 512}"]) == 0
    out = capsys.readouterr().out
    assert "it does not fit" in out
    assert "masks.batch_size=" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt-tokens", "5"], "expected no --prompt-tokens with a config of images, got 5"),
        (["--reply-tokens", "5"], "expected no --reply-tokens with a config of images, got 5"),
        (["--mesh", "1,1,2"], "expected fsdp 1 and tensor 1 with a config of images, got --mesh 1,1,2"),
        (["model.base=absent"], "expected a folder of Segment Anything or one of facebook/sam-vit-base"),
        (["tasks.0.train_size=null"], "polyp"),
        (["search.method=cmaes"], "expected search.method cycleqd, qd or dns"),
    ],
)
def test_plans_of_images_that_are_refused(capsys, tmp_path, arguments, words):
    assert main(["plan", str(image_config(tmp_path)), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_shape_of_a_model_of_images_from_a_file(capsys, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "sam", "vision_config": {"hidden_size": 384, "num_attention_heads": 6}}))
    facts = planned(capsys, image_config(tmp_path), "--model-config", file)
    assert 20e6 < facts["parameters"] < 40e6


@pytest.mark.parametrize(("name", "got"), [("", "a folder"), ("none.json", "no such file")])
def test_a_shape_that_is_no_file(tmp_path, capsys, name, got):
    assert main(["plan", str(CONFIGS / "quickstart.yaml"), "--model-config", str(tmp_path / name)]) == 2
    assert f"expected the config.json of a model for --model-config, got {got}: {tmp_path}" in capsys.readouterr().err
