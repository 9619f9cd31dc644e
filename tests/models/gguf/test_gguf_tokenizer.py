"""Tokenizers of GGUF files, against llama.cpp."""

from __future__ import annotations

import json
import os
import random
import unicodedata
from pathlib import Path

import pytest

from cycleqd_jax.models.files import gguf, hf
from cycleqd_jax.models.files.gguf_file import read_header
from cycleqd_jax.types import InputError

from .writer import lib

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)


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
