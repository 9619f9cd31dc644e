"""Models that are broken, unsafe, or none at all: one sentence that names the file, and nothing is run or written."""

from __future__ import annotations

import json
import shutil

import pytest

from cycleqd_jax.cli import main
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import load_tokenizer, open_checkpoint
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.types import InputError

DEEP = "[" * 100_000
INDEX = "model.safetensors.index.json"
ADVICE = r"pickled weights \({}\), which can run code when they are read; convert them with transformers, AutoModelForCausalLM"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, make_config, make_params, tokenizer):
    """A sound model, in one file and in shards."""
    root = tmp_path_factory.mktemp("whole")
    config = make_config(vocab_size=tokenizer.vocab_size)
    params = make_params(config)
    hf.save(root / "single", config, params, tokenizer=tokenizer)
    hf.save(root / "shards", config, params, tokenizer=tokenizer, max_shard_bytes=50_000)
    return root


@pytest.fixture
def single(whole, tmp_path):
    return shutil.copytree(whole / "single", tmp_path / "m")


@pytest.fixture
def shards(whole, tmp_path):
    return shutil.copytree(whole / "shards", tmp_path / "m")


def edit(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def set_header(path, change):
    """Another header before the same bytes; ``change`` may also make the whole text of it."""
    data = path.read_bytes()
    stop = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:stop])
    changed = change(header)
    text = (changed if isinstance(changed, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[stop:])


def refused(capsys, *args) -> str:
    capsys.readouterr()
    assert main([str(arg) for arg in args]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("cycleqd: ")
    assert error.count("\n") == 1
    assert len(error) < 1000
    return error


# --------------------------------------------------------------------------------------------------------------------
# JSON


@pytest.mark.parametrize(
    "text", [DEEP, '{"a": ' + DEEP, "{", "[]", "null", "\xff"], ids=["deep", "inner", "cut", "list", "null", "ff"]
)
@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_json_that_is_none(shards, name, text):
    (shards / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=rf"expected (JSON|a JSON object) in .*{name}, got"):
        open_checkpoint(shards)


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_tokenizer_of_brackets(single, name):
    (single / name).write_text(DEEP, encoding="utf-8")
    with pytest.raises(InputError, match=rf"{single}.*restore"):
        ChatTokenizer.load(single)


def test_a_config_that_is_nested_almost_too_deeply(single):
    """So deep that it can be read, and not written again."""
    config = json.loads((single / "config.json").read_text(encoding="utf-8"))
    refused = []
    for depth in (500, *range(900, 1000, 5)):  # how deep that is depends on who calls
        (single / "config.json").write_text(json.dumps(config)[:-1] + f', "x": {"[" * depth}{"]" * depth}}}', encoding="utf-8")
        try:
            open_checkpoint(single)
        except InputError as error:
            refused.append(str(error))
    assert 0 < len(refused) < 21
    assert all("config.json" in error for error in refused)


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h["model.norm.weight"].update(shape=[float("inf")]),
        lambda h: h["model.norm.weight"].update(shape=[float("nan")]),
        lambda h: h["model.norm.weight"].update(shape=[32.0]),
        lambda h: h["model.norm.weight"].update(shape=["32"]),
        lambda h: h["model.norm.weight"].update(shape="32"),
        lambda h: h["model.norm.weight"].update(shape={"32": 1}),
        lambda h: h["model.norm.weight"].update(shape=[10**30, 0]),
        lambda h: h["model.norm.weight"].update(data_offsets=[0]),
        lambda h: h["model.norm.weight"].update(data_offsets=[0.0, float("inf")]),
        lambda h: h["model.norm.weight"].update(dtype=["F32"]),
        lambda h: h.update({"model.norm.weight": []}),
        lambda h: DEEP,
        lambda h: '{"a":' + DEEP,
        lambda h: "[]",
        lambda h: "null",
    ],
)
def test_headers_that_are_none(single, change):
    set_header(single / "model.safetensors", change)
    with pytest.raises(
        InputError, match=r"expected a whole safetensors file, got .* in .*model.safetensors; download"
    ) as refused:
        open_checkpoint(single)
    assert len(str(refused.value)) < 500


def test_a_file_that_is_a_folder(single):
    (single / "model.safetensors").unlink()
    (single / "model.safetensors").mkdir()
    with pytest.raises(InputError, match=r"model.safetensors"):
        open_checkpoint(single)


def test_the_config_of_a_folder_is_named(single):
    edit(single / "config.json", lambda config: config.update(num_attention_heads=0))
    with pytest.raises(InputError, match=rf"'num_attention_heads' in {single}/config.json, got 0"):
        open_checkpoint(single)


def test_more_layers_than_there_could_be(single):
    edit(single / "config.json", lambda config: config.update(num_hidden_layers=2_000_000_000))
    with pytest.raises(InputError, match=r"tensors for 2000000000 layers, .*got 30 tensors"):
        open_checkpoint(single)


# --------------------------------------------------------------------------------------------------------------------
# Pickles


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "a.pth", "a.ckpt", "a.pkl"])
def test_pickled_weights(single, name):
    (single / "model.safetensors").unlink()
    (single / name).write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=f"expected model.safetensors in {single}, got {ADVICE.format(name)}"):
        open_checkpoint(single)


def test_an_index_of_pickled_weights(shards):
    edit(shards / INDEX, lambda index: index["weight_map"].update({"model.norm.weight": "pytorch_model-00001-of-00002.bin"}))
    with pytest.raises(InputError, match=f"{INDEX}, got {ADVICE.format('pytorch_model-00001-of-00002.bin')}"):
        open_checkpoint(shards)


# --------------------------------------------------------------------------------------------------------------------
# Names


@pytest.mark.parametrize("command", [["generate", "hi"], ["inspect"]])
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("/nowhere", "got no such folder: /nowhere"),
        ("/etc/passwd", "got another kind of file: /etc/passwd"),
        ("", "got an empty name"),
        ("/nowhere/m.gguf", "expected a GGUF file, got no file /nowhere/m.gguf"),
    ],
)
def test_names_that_are_no_models(capsys, command, name, named):
    error = refused(capsys, command[0], name, *command[1:])
    assert named in error
    assert "tokenizer" not in error


def test_a_name_that_is_too_long(capsys):
    assert "got File name too long for xxxx" in refused(capsys, "generate", "x" * 5000, "hi")


def test_generate_says_first_that_there_is_no_model(single, capsys):
    (single / "tokenizer_config.json").unlink()
    assert "tokenizer_config.json" in refused(capsys, "generate", single, "hi")
    (single / "model.safetensors").rename(single / "pytorch_model.bin")
    assert "pickled weights (pytorch_model.bin)" in refused(capsys, "generate", single, "hi")
    (single / "config.json").rename(single / "adapter_config.json")
    error = refused(capsys, "generate", single, "hi")
    assert f"got a LoRA adapter in {single}; give a whole model" in error
    (single / "adapter_config.json").unlink()
    assert f"got no config.json in {single}" in refused(capsys, "generate", single, "hi")


@pytest.mark.parametrize("name", ["/nowhere", "/etc/passwd", ""])
def test_a_tokenizer_of_nothing(name):
    with pytest.raises(InputError, match="expected a Hugging Face model folder"):
        load_tokenizer(name)


def test_a_name_that_is_far_too_long(capsys):
    from cycleqd_jax.cli import main

    for name in ("x" * 5000, "x" * 5000 + ".gguf"):
        assert main(["inspect", name]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("dtype", ["F8_E8M0", "F4", "C64"])
def test_a_dtype_that_is_unknown_is_named(single, dtype):
    set_header(single / "model.safetensors", lambda h: h["model.norm.weight"].update(dtype=dtype))
    with pytest.raises(InputError, match=f"expected dtype F32, BF16, F16 for tensor model.norm.weight in .*, got {dtype};"):
        open_checkpoint(single)
