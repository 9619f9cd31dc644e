"""``cycleqd generate`` on every kind of model file; decoding itself is tested with the engine."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cycleqd_jax.cli import main
from cycleqd_jax.models.fetch import fetch_smollm2
from cycleqd_jax.models.files import checkpoint, hf

pytest.importorskip("gguf", reason="the gguf package, which writes the test files, is not installed")
from gguf import GGMLQuantizationType

from ..tiny_gguf import write


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the command keeps its compiled programs


def answer(capsys, model, *options: str) -> str:
    capsys.readouterr()
    assert main(["generate", str(model), "Hi 12", "--max-new-tokens", "5", *options]) == 0
    out, error = capsys.readouterr()
    assert error == ""
    return out


@pytest.mark.exhaustive
@pytest.mark.parametrize(("kind", "dtype"), [("F16", "float16"), ("BF16", "bfloat16")])
def test_16_bit_gguf_files(tmp_path, capsys, kind, dtype):
    """The norms in the file are float32; they are read in the dtype of the matrices."""
    model = write(tmp_path / "m.gguf", GGMLQuantizationType[kind])
    assert {tensor.dtype for tensor in checkpoint.open_checkpoint(model).tensors.values()} == {"F32", kind}
    text = answer(capsys, model)
    assert text.endswith("\n")
    assert len(text) > 2
    config, params = hf.load(model)
    assert config.dtype == dtype
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {dtype}
    folder = fetch_smollm2(tmp_path / "m", source=model, dtype=dtype, log=lambda line: None)
    assert answer(capsys, folder) == text


@pytest.mark.exhaustive
def test_a_folder_with_mixed_dtypes(tmp_path, capsys):
    model = write(tmp_path / "m.gguf", GGMLQuantizationType.F32)
    folder = fetch_smollm2(tmp_path / "m", source=model, dtype="float16", log=lambda line: None)
    text = answer(capsys, folder)
    tensors = load_file(folder / "model.safetensors")
    mixed = {name: tensor.astype(np.float32) if tensor.ndim == 1 else tensor for name, tensor in tensors.items()}
    assert {tensor.dtype.name for tensor in mixed.values()} == {"float16", "float32"}
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    assert answer(capsys, folder) == text


def test_bad_requests(tmp_path, capsys):
    model = write(tmp_path / "m.gguf", GGMLQuantizationType.F32)
    assert main(["generate", str(model), "Hi", "--max-new-tokens", "0"]) == 2
    assert "expected --max-new-tokens to be at least 1, got 0" in capsys.readouterr().err
    assert main(["generate", str(model), "1 " * 200]) == 2
    assert "shorten it" in capsys.readouterr().err


def test_compiled_programs_are_kept(tmp_path, capsys):
    model = write(tmp_path / "m.gguf", GGMLQuantizationType.F32)
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        text = answer(capsys, model)
        assert list((tmp_path / "runs" / "cache" / "compiled").iterdir())
        (tmp_path / "runs").rename(tmp_path / "elsewhere")
        (tmp_path / "runs").touch()  # no folder can be made
        assert answer(capsys, model) == text
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
