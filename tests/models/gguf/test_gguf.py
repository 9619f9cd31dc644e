"""GGUF files: tensors, config, logits, and files that are refused."""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd_jax.models.files import gguf, hf
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.types import InputError

from .writer import ARCHITECTURES, BF16, F16, F32, Q4_1, Q8_0, SIZES, hf_tensors, llama3_factors, quants, write


@pytest.mark.parametrize("kind", [F32, F16, BF16, Q8_0, Q4_1])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_tensors_come_back_under_their_names_in_their_order(tmp_path, model_type, kind):
    tensors = hf_tensors(model_type, tied=False)
    _, read = gguf.read_gguf(write(tmp_path / "m.gguf", tensors, model_type, kind))
    assert set(read) == set(tensors)
    for name, array in tensors.items():
        stored = kind if array.ndim == 2 else F32
        assert read[name].shape == array.shape
        assert read[name].dtype == (stored.name if stored in (F32, F16, BF16) else "F32")
        # Rows do not share blocks, so quantising commutes with llama.cpp's order of rows.
        expected = quants.dequantize(quants.quantize(array, stored), stored)
        got = read[name].read(0, array.shape[0])
        assert got.dtype.name == {"F16": "float16", "BF16": "bfloat16"}.get(read[name].dtype, "float32")
        np.testing.assert_array_equal(got.astype(np.float32), expected, err_msg=name)


@given(data=st.data())
@settings(max_examples=50)
def test_any_rows_are_those_of_the_whole(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "rows.gguf"
    if not path.exists():
        write(path, hf_tensors("llama", tied=True), kind=Q4_1)
    _, read = gguf.read_gguf(path)
    tensor = read[data.draw(st.sampled_from(sorted(read)))]
    start, stop = sorted(data.draw(st.lists(st.integers(0, tensor.shape[0]), min_size=2, max_size=2)))
    np.testing.assert_array_equal(tensor.read(start, stop), tensor.read(0, tensor.shape[0])[start:stop])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_the_config_is_the_one_that_was_converted(tmp_path, model_type, tied):
    keys = {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 3}
    config, _ = gguf.read_gguf(write(tmp_path / "m.gguf", hf_tensors(model_type, tied), model_type, BF16, keys))
    for name, value in {**SIZES, "tie_word_embeddings": tied, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}.items():
        assert config[name] == value, name
    ours = LlamaConfig.from_hf(config)
    assert ours.model_type == model_type
    assert (ours.attention_bias, ours.qk_norm) == (model_type == "qwen2", model_type == "qwen3")
    assert ours.dtype == "bfloat16"


@pytest.mark.parametrize(
    "model_type", [name if name == "llama" else pytest.param(name, marks=pytest.mark.exhaustive) for name in ARCHITECTURES]
)
def test_logits_are_those_of_the_model_that_was_converted(tmp_path, model_type):
    torch = pytest.importorskip("torch", reason="torch, which transformers computes with, is not installed")
    import jax
    from transformers import AutoConfig, AutoModelForCausalLM

    from cycleqd_jax.models import llama

    tensors = {name: array / 8 for name, array in hf_tensors(model_type, tied=True).items()}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **SIZES, tie_word_embeddings=True), attn_implementation="eager"
    ).eval()
    model.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()}, strict=False)
    config, params = hf.load(write(tmp_path / "m.gguf", tensors, model_type))
    tokens = np.random.default_rng(1).integers(0, SIZES["vocab_size"], (2, 17))
    got = jax.jit(llama.forward, static_argnums=1)(params, config, tokens)
    with torch.no_grad():
        expected = model(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_scaling_is_found_again(tmp_path, factor):
    path = write(tmp_path / "m.gguf", hf_tensors("llama", True), extra={"rope_freqs.weight": llama3_factors(factor)})
    config, _ = gguf.read_gguf(path)
    scaling = LlamaConfig.from_hf(config).rope_scaling
    assert scaling is not None
    assert (scaling.factor, scaling.low_freq_factor, scaling.high_freq_factor) == (factor, 1, 4)
    assert scaling.original_max_position_embeddings == 8192


@pytest.mark.parametrize(
    "factors", [llama3_factors(8, length=4096), llama3_factors(8, high=3), np.ones(16, np.float32), llama3_factors(8)[:8]]
)
def test_other_rope_factors_are_refused(tmp_path, factors):
    path = write(tmp_path / "m.gguf", hf_tensors("llama", True), extra={"rope_freqs.weight": factors})
    with pytest.raises(InputError, match=r"rope_freqs\.weight of .*m\.gguf"):
        gguf.read_gguf(path)


# --------------------------------------------------------------------------------------------------------------------
# Bad files

BAD = {
    "architecture": ({"model_type": "gemma2"}, "general.architecture .* got 'gemma2'"),
    "missing tensor": ({"drop": ["blk.1.ffn_up.weight"]}, r"no tensor blk\.1\.ffn_up\.weight"),
    "unknown tensor": ({"extra": {"blk.0.ffn_gate_inp.weight": np.ones((4, 64), np.float32)}}, "ffn_gate_inp"),
    "missing key": ({"drop": ["embedding_length"]}, r"the key llama\.embedding_length in .*got none"),
    "key of another type": (
        {"drop": ["context_length"], "keys": {"llama.context_length": "8k"}},
        r"type int for the key .*'8k'",
    ),
    "part": ({"keys": {"split.count": 3}}, "one of 3 parts"),
    "experts": ({"keys": {"llama.expert_count": 8}}, r"expert_count .* got 8"),
    "yarn": ({"keys": {"llama.rope.scaling.type": "yarn"}}, r"rope\.scaling\.type .* got 'yarn'"),
    "partial rope": ({"keys": {"llama.rope.dimension_count": 16}}, r"rope\.dimension_count .* got 16"),
    "heads": ({"drop": ["attention.head_count"], "keys": {"llama.attention.head_count": 8}}, r"256 rows \(8 heads of 32\)"),
    "type": ({"extra": {"output.weight": np.ones((48, 64), np.int32)}}, r"tensor output\.weight .* ggml type 26"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_can_not_be_computed_is_refused_by_name(tmp_path, name):
    changes, message = BAD[name]
    path = write(tmp_path / "m.gguf", hf_tensors("llama", True), **changes)
    with pytest.raises(InputError, match=message) as caught:
        gguf.read_gguf(path)
    assert "m.gguf" in str(caught.value)


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path):
    whole = write(tmp_path / "whole.gguf", hf_tensors("llama", True), kind=Q4_1).read_bytes()
    cut = tmp_path / "cut.gguf"
    for size in [*range(0, 4096, 37), *range(4096, len(whole), 5003), len(whole) - 600]:
        cut.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.gguf"):
            gguf.read_gguf(cut)


@pytest.mark.exhaustive
@given(data=st.data())
@settings(max_examples=300)
def test_a_damaged_header_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    whole = folder / "sound.gguf"
    if not whole.exists():
        extra = {"rope_freqs.weight": llama3_factors(8)}
        write(whole, hf_tensors("llama", True), kind=Q4_1, keys={"tokenizer.ggml.model": "gpt2"}, extra=extra)
    content = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 2500))
        content[at] = data.draw(st.integers(0, 255))
    path = folder / "damaged.gguf"
    path.write_bytes(content)
    for read in (gguf.read_gguf, gguf.gguf_tokenizer):
        with contextlib.suppress(InputError):
            read(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(40), "magic"),
        (b"GGUF\x01\0\0\0" + bytes(40), "version 1"),
        (b"GGUF\0\0\0\x03" + bytes(40), "big-endian"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 40, "unreadable header"),
    ],
)
def test_what_is_no_gguf_is_refused(tmp_path, content, message):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(InputError, match=message):
        gguf.read_gguf(tmp_path / "m.gguf")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"expected a GGUF file, got no file .*absent\.gguf"):
        gguf.read_gguf(tmp_path / "absent.gguf")


def test_broken_scales_are_named_when_the_weights_are_loaded(tmp_path):
    tensors = hf_tensors("llama", True)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        hf.load(write(tmp_path / "m.gguf", tensors))


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "m.gguf", hf_tensors("llama", True))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'cycleqd_jax\[gguf\]'"):
        gguf.read_gguf(path)
