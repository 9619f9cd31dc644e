from __future__ import annotations

import contextlib
import json
import math
import os
import random
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cycleqd_jax.models.files import gguf, hf
from cycleqd_jax.models.files.gguf_file import read_header
from cycleqd_jax.models.llama.config import LlamaConfig
from cycleqd_jax.types import InputError

lib = pytest.importorskip("gguf", reason="the gguf package, which writes the test files, is not installed")
from gguf import quants  # noqa: E402

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)
SIZES = {
    "vocab_size": 48,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 12345.5,
}
Q4_1, Q8_0 = lib.GGMLQuantizationType.Q4_1, lib.GGMLQuantizationType.Q8_0
F16, BF16, F32 = lib.GGMLQuantizationType.F16, lib.GGMLQuantizationType.BF16, lib.GGMLQuantizationType.F32
ARCHITECTURES = {"llama": lib.MODEL_ARCH.LLAMA, "qwen2": lib.MODEL_ARCH.QWEN2, "qwen3": lib.MODEL_ARCH.QWEN3}


def hf_tensors(model_type: str, tied: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights under the names of transformers' modules."""
    s = SIZES
    q, kv = s["num_attention_heads"] * s["head_dim"], s["num_key_value_heads"] * s["head_dim"]
    shapes = {"model.embed_tokens.weight": (s["vocab_size"], s["hidden_size"]), "model.norm.weight": (s["hidden_size"],)}
    if not tied:
        shapes["lm_head.weight"] = (s["vocab_size"], s["hidden_size"])
    for i in range(s["num_hidden_layers"]):
        layer = {
            "input_layernorm.weight": (s["hidden_size"],),
            "post_attention_layernorm.weight": (s["hidden_size"],),
            "self_attn.q_proj.weight": (q, s["hidden_size"]),
            "self_attn.k_proj.weight": (kv, s["hidden_size"]),
            "self_attn.v_proj.weight": (kv, s["hidden_size"]),
            "self_attn.o_proj.weight": (s["hidden_size"], q),
            "mlp.gate_proj.weight": (s["intermediate_size"], s["hidden_size"]),
            "mlp.up_proj.weight": (s["intermediate_size"], s["hidden_size"]),
            "mlp.down_proj.weight": (s["hidden_size"], s["intermediate_size"]),
        }
        if model_type == "qwen2":
            layer |= {f"self_attn.{x}_proj.bias": (rows,) for x, rows in (("q", q), ("k", kv), ("v", kv))}
        if model_type == "qwen3":
            layer |= {f"self_attn.{x}_norm.weight": (s["head_dim"],) for x in "qk"}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of the llama architecture."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def write(path: Path, tensors, model_type="llama", kind=F32, keys=(), drop=(), extra=None, rename=()) -> Path:
    """A GGUF file by the gguf package's own writer and table of names.

    ``keys`` are further metadata, ``drop`` and ``rename`` leave keys and tensors out or call them otherwise.
    """
    file = lib.GGUFWriter(path, model_type)
    values = {
        "context_length": SIZES["max_position_embeddings"],
        "embedding_length": SIZES["hidden_size"],
        "block_count": SIZES["num_hidden_layers"],
        "feed_forward_length": SIZES["intermediate_size"],
        "attention.head_count": SIZES["num_attention_heads"],
        "attention.head_count_kv": SIZES["num_key_value_heads"],
        "attention.key_length": SIZES["head_dim"],
    }
    for key, value in values.items():
        if key not in drop:
            file.add_uint32(f"{model_type}.{key}", value)
    file.add_float32(f"{model_type}.attention.layer_norm_rms_epsilon", SIZES["rms_norm_eps"])
    file.add_float32(f"{model_type}.rope.freq_base", SIZES["rope_theta"])
    for key, value in dict(keys).items():
        add = file.add_string if isinstance(value, str) else file.add_uint32
        add(key, value)
    names = lib.get_tensor_name_map(ARCHITECTURES.get(model_type, lib.MODEL_ARCH.LLAMA), SIZES["num_hidden_layers"])
    for name, array in tensors.items():
        heads = {"q": SIZES["num_attention_heads"], "k": SIZES["num_key_value_heads"]}.get(name.split("_proj")[0][-1])
        if model_type == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            array = permute(array, heads)
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if theirs in drop:
            continue
        stored = kind if array.ndim == 2 else F32
        file.add_tensor(dict(rename).get(theirs, theirs), quants.quantize(array, stored), raw_dtype=stored)
    for name, array in (extra or {}).items():
        file.add_tensor(name, array)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


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


@pytest.mark.parametrize("model_type", ARCHITECTURES)
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


def llama3_factors(factor: float, low: float = 1, high: float = 4, length: int = 8192, head_dim: int = 32) -> np.ndarray:
    """What llama.cpp's converter writes to rope_freqs.weight, as it computes it."""
    factors = []
    for frequency in 1 / SIZES["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * math.pi / frequency
        if wavelength < length / high:
            factors.append(1)
        elif wavelength > length / low:
            factors.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


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


@given(data=st.data())
@settings(max_examples=300)
def test_a_damaged_head_is_read_or_refused(tmp_path_factory, data):
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
        (b"GGUF\x03\0\0\0" + b"\xff" * 40, "unreadable head"),
    ],
)
def test_what_is_no_gguf_is_refused(tmp_path, content, message):
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(InputError, match=message):
        gguf.read_gguf(tmp_path / "m.gguf")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.gguf, which is not a file"):
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


# --------------------------------------------------------------------------------------------------------------------
# Tokenizers


def texts(data: Path | None = None) -> list[str]:
    """Real problems where there are some, and strings of everything that a pre-tokenizer cuts at."""
    rng = random.Random(0)
    letters = [chr(c) for c in [*range(32, 127), *range(0xA0, 0x180), 9, 10, 13, 0x85, 0x2028, 0x3000]]
    letters += [*"αЖאع한あ語😀", "\u200d", "½²٣Ⅷ", "e\u0301", "<|im_end|>", "<|im_start|>"]
    mixed = [
        "".join(rng.choice(rng.choice((letters, " \n\t'sdtmre19"))) for _ in range(rng.randint(1, 40))) for _ in range(1500)
    ]
    fixed = [
        "",
        " ",
        "\n\n\n",
        "a\n\n  b\n",
        "12345 x12 3.14",
        "don't I'LL we'Re",
        "<|im_start|>user\nhi<|im_end|>\n",
        "  <|im_end|>  ",
    ]
    for path in [] if data is None else sorted(data.glob("*/*.jsonl")):
        with path.open(encoding="utf-8") as file:
            fixed += [
                str(value)[:2000] for _, line in zip(range(20), file, strict=False) for value in json.loads(line).values()
            ]
    return fixed + mixed


def vocab_file(path: Path, tokens, types, pre=None, model="gpt2", merges=None, scores=None, template=TEMPLATE, **keys) -> Path:
    file = lib.GGUFWriter(path, "llama")
    for key in ("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"):
        file.add_uint32(f"llama.{key}", 64)
    file.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    file.add_uint32("llama.vocab_size", len(tokens))
    file.add_tokenizer_model(model)
    if pre is not None:
        file.add_tokenizer_pre(pre)
    file.add_token_list(tokens)
    file.add_token_types(types)
    if merges is not None:
        file.add_token_merges(merges)
    if scores is not None:
        file.add_token_scores(scores)
    if template is not None:
        file.add_chat_template(template)
    for key, value in keys.items():
        add = file.add_bool if isinstance(value, bool) else file.add_uint32
        add(f"tokenizer.ggml.{key}", value)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.fixture(scope="module")
def llama_cpp():
    return pytest.importorskip("llama_cpp", reason="llama-cpp-python, the reference, is not installed")


def assert_ids_are_llama_cpps(llama_cpp, path, samples, add_bos=False):
    ours = gguf.gguf_tokenizer(path)._tokenizer
    theirs = llama_cpp.Llama(model_path=str(path), vocab_only=True, verbose=False)
    try:
        for text in samples:
            expected = theirs.tokenize(text.encode(), add_bos=add_bos, special=True)
            assert ours.encode(text) == expected, text
    finally:
        theirs.close()


@pytest.fixture
def data_or_none():
    folder = os.environ.get("CYCLEQD_DATA")
    return Path(folder) if folder and Path(folder).is_dir() else None


def test_smollm2s_ids_are_llama_cpps(smollm2_gguf, llama_cpp, data_or_none):
    assert_ids_are_llama_cpps(llama_cpp, smollm2_gguf, texts(data_or_none))


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_other_ways_of_cutting_are_llama_cpps(smollm2_gguf, llama_cpp, tmp_path, data_or_none, pre):
    metadata = read_header(smollm2_gguf).metadata
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    path = vocab_file(
        tmp_path / "m.gguf", tokens, types, pre, merges=metadata["tokenizer.ggml.merges"], eos_token_id=2, add_bos_token=False
    )
    samples = [unicodedata.normalize("NFC", text) for text in texts(data_or_none)]
    assert_ids_are_llama_cpps(llama_cpp, path, samples)


def test_sentencepiece_ids_are_llama_cpps(llama_cpp, tmp_path):
    """A vocabulary learned here: scores fall in the order in which sentencepiece's BPE finds its pieces."""
    from tokenizers import Tokenizer, models, normalizers, trainers

    corpus = [path.read_text("utf-8") for path in sorted(Path(hf.__file__).parent.glob("*.py"))]
    learned = Tokenizer(models.BPE())
    learned.normalizer = normalizers.Replace(" ", "▁")
    learned.train_from_iterator(
        [line for text in corpus for line in text.splitlines()],
        trainers.BpeTrainer(vocab_size=1500, show_progress=False, max_token_length=16),
    )
    learned_vocabulary = learned.get_vocab()
    letters = sorted(token for token in learned_vocabulary if len(token) == 1)
    pieces = sorted((token for token in learned_vocabulary if len(token) > 1), key=learned_vocabulary.get)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *letters]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(pieces) + len(letters))]
    scores = [0.0] * 259 + [-float(i) for i in range(len(pieces) + len(letters))]
    path = vocab_file(
        tmp_path / "m.gguf",
        tokens,
        types,
        "default",
        "llama",
        scores=scores,
        bos_token_id=1,
        eos_token_id=2,
        unknown_token_id=0,
    )
    samples = [*texts(), *(text[:3000] for text in corpus), "<s>[INST] hi [/INST] yes</s> no", "▁x", "日本 😀"]
    assert_ids_are_llama_cpps(llama_cpp, path, samples, add_bos=True)
    tokenizer = gguf.gguf_tokenizer(path)
    for text in ("def f(x): return 日本", " two  spaces ", "a"):
        assert tokenizer.decode(tokenizer._tokenizer.encode(text)) == text


BYTES = [chr(c) for c in [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144)]]
CHAT = [{"role": "user", "content": "ab 12"}]


def small_vocab(path: Path, **changes) -> Path:
    tokens = [*BYTES, "ab", "<|im_start|>", "<|im_end|>", "<think>", "<|endoftext|>", "[PAD1]", "[PAD2]"]
    types = [1] * (len(BYTES) + 1) + [3, 3, 4, 3, 5, 5]
    settings = {"pre": "qwen2", "merges": ["a b"], "eos_token_id": 258, "padding_token_id": 260}
    return vocab_file(path, **({"tokens": tokens, "types": types} | settings | changes))


def test_special_tokens_template_and_stops(tmp_path):
    tokenizer = gguf.gguf_tokenizer(small_vocab(tmp_path / "m.gguf"))
    assert tokenizer.stop_ids == (258, 260)  # <|im_end|> by the metadata, <|endoftext|> as Qwen has it
    assert tokenizer.pad_id == 260
    ids = tokenizer.encode(CHAT)
    assert (ids[0], ids[-2]) == (257, 258)
    assert tokenizer.decode(ids) == "user\nab 12\n"
    assert tokenizer.decode(tokenizer._tokenizer.encode("<think>ab</think>")) == "<think>ab</think>"  # kept in what is decoded
    assert tokenizer._tokenizer.encode("<think>")[0] == 259
    assert 261 not in tokenizer._tokenizer.encode("[PAD1]")


def test_a_saved_tokenizer_reads_the_same(tmp_path):
    from cycleqd_jax.models.tokenizer import ChatTokenizer

    tokenizer = gguf.gguf_tokenizer(small_vocab(tmp_path / "m.gguf"))
    tokenizer.save(tmp_path / "hf")
    again = ChatTokenizer.load(tmp_path / "hf")
    assert again.encode(CHAT) == tokenizer.encode(CHAT)
    assert (again.stop_ids, again.pad_id, again.bos_id) == (tokenizer.stop_ids, tokenizer.pad_id, tokenizer.bos_id)


def test_qwen_composes_unicode_first(tmp_path):
    tokenizer = gguf.gguf_tokenizer(small_vocab(tmp_path / "m.gguf"))
    assert tokenizer._tokenizer.encode("e\u0301") == tokenizer._tokenizer.encode("é")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pre": "tekken"}, r"tokenizer\.ggml\.pre .* got 'tekken'"),
        ({"pre": None}, r"tokenizer\.ggml\.pre .* got none"),
        ({"model": "bert"}, r"tokenizer\.ggml\.model .* got 'bert'"),
        ({"template": None}, "chat_template"),
        ({"eos_token_id": 9999}, r"eos_token_id .* got 9999"),
        ({"types": [1, 1]}, r"a type for each of 263 tokens .* got 2"),
        ({"merges": ["a nothing"]}, "merges of known tokens"),
        ({"tokens": ["a"] * 263}, "every token once"),
        ({"model": "llama", "scores": [0.0]}, r"a score for each of 263 tokens .* got 1"),
    ],
)
def test_tokenizers_that_would_be_wrong_are_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        gguf.gguf_tokenizer(small_vocab(tmp_path / "m.gguf", **changes))
    assert "m.gguf" in str(caught.value)
