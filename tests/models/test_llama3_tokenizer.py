"""Llama 3's real tokenizer as a Hugging Face folder: conversations have the ids of the published format.

The reference is Meta's own: ``tokenizer.model`` read by tiktoken, and the layout of ``llama3/llama/tokenizer.py``. The
Hugging Face side is made here from the same file, with the published template, and read by the package.
"""

from __future__ import annotations

import base64
import importlib.util
import json
from pathlib import Path

import pytest

from cycleqd_jax.models.files import gguf
from cycleqd_jax.models.tokenizer import LLAMA3_TEMPLATE, ChatTokenizer

pytest.importorskip("llama_models.llama3.tokenizer", reason="llama-models, which holds Llama 3's tokenizer, is not installed")

PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
SPECIAL = {
    128000: "<|begin_of_text|>",
    128001: "<|end_of_text|>",
    128006: "<|start_header_id|>",
    128007: "<|end_header_id|>",
    128009: "<|eot_id|>",
}
USER, ASSISTANT, SYSTEM = "user", "assistant", "system"
CONVERSATIONS = {
    "one turn": [(USER, "What is 2 + 2?")],
    "system": [(SYSTEM, "You are a helpful assistant."), (USER, "Hi!")],
    "turns": [
        (SYSTEM, "Answer in SQL."),
        (USER, "How old is 'Bob'?"),
        (ASSISTANT, "SELECT age FROM people WHERE name = 'Bob';"),
        (USER, "[(41,)]"),
        (ASSISTANT, "41"),
        (USER, "And in 1234567 days, 0.5 years or 12 months?"),
    ],
    "unicode": [(USER, "Größe? 日本語 한국어 हिन्दी العربية 👩‍👩‍👧 e\u0301 ½ ² ٣ \u00a0x\u2028y\u3000z ŉ ǅ")],
    "code": [(USER, "def f(x):\n\tif x:\n\t\treturn {'a': [1, 2]}\n\n\n    # I'LL don't\r\n  pass  \n;")],
    "digits": [(USER, "1 12 123 1234 12345 3.14159 1e-10 0x7f 2024-01-31 １２３")],
    "empty": [(SYSTEM, ""), (USER, "")],
    "outer whitespace": [
        (SYSTEM, " \n system\t"),
        (USER, "\n\n  indented\n  text \n\n"),
        (ASSISTANT, "   "),
        (USER, "\u3000a"),
    ],
    "inner whitespace": [(USER, "a  b   c\n\n\nd \n e\t\tf")],
}


def alphabet() -> dict[int, str]:
    """The printable character that GPT-2's byte-level vocabularies write for every byte."""
    printable = [*range(33, 127), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


@pytest.fixture(scope="module")
def model_file() -> Path:
    spec = importlib.util.find_spec("llama_models")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "llama3" / "tokenizer.model"


@pytest.fixture(scope="module")
def meta(model_file):
    from llama_models.llama3.tokenizer import Tokenizer

    return Tokenizer(model_file)


@pytest.fixture(scope="module")
def vocabulary(model_file, meta):
    """Tokens in order of their ids, the 256 special ones last, and merges in the order of the ranks of what they make."""
    ranks = {}
    for line in model_file.read_bytes().splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    merges = []
    for token in ranks:
        pairs = [(token[:at], token[at:]) for at in range(1, len(token))]
        pairs = [(left, right) for left, right in pairs if left in ranks and right in ranks]
        merges += sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    letters = alphabet()
    spell = {token: "".join(letters[byte] for byte in token) for token in ranks}
    special = sorted(meta.special_tokens, key=meta.special_tokens.get)
    return [*spell.values(), *special], [(spell[left], spell[right]) for left, right in merges]


@pytest.fixture(scope="module")
def tokenizer(vocabulary, tmp_path_factory):
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens, merges = vocabulary
    ordinary = {token: i for i, token in enumerate(tokens[:128000])}
    built = Tokenizer(models.BPE(vocab=ordinary, merges=merges, ignore_merges=True))
    built.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens[128000:]])
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    built.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    built.decoder = decoders.ByteLevel()
    folder = tmp_path_factory.mktemp("llama3")
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=built,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        clean_up_tokenization_spaces=False,
        chat_template=TEMPLATE,
    )
    wrapped.save_pretrained(folder)
    generation = {"bos_token_id": 128000, "eos_token_id": [128001, 128009], "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return ChatTokenizer.load(folder)


def messages_of(conversation):
    return [{"role": role, "content": content} for role, content in conversation]


def published_ids(meta, conversation, add_generation_prompt=True):
    """As Meta's ChatFormat lays a dialog out; the content is stripped, and its text is never special."""

    def header(role):
        ids = meta.encode(role, bos=False, eos=False)
        return [128006, *ids, 128007, *meta.encode("\n\n", bos=False, eos=False)]

    ids = [128000]
    for role, content in conversation:
        ids += [*header(role), *meta.encode(content.strip(), bos=False, eos=False), 128009]
    return ids + header(ASSISTANT) if add_generation_prompt else ids


@pytest.mark.exhaustive
def test_the_special_tokens_are_where_they_were_published(tokenizer, meta):
    assert {i: meta.model.decode([i]) for i in SPECIAL} == SPECIAL
    assert tokenizer.vocab_size == 128256
    assert tokenizer.bos_id == 128000


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_have_the_published_ids(tokenizer, meta, name, add_generation_prompt):
    conversation = CONVERSATIONS[name]
    expected = published_ids(meta, conversation, add_generation_prompt)
    assert tokenizer.encode(messages_of(conversation), add_generation_prompt) == expected


@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if name != "outer whitespace"])
def test_conversations_have_the_ids_of_metas_chat_format(tokenizer, meta, name):
    chat_format = pytest.importorskip("llama_models.llama3.chat_format", reason="ChatFormat's own needs are not installed")
    from llama_models.datatypes import RawMessage

    dialog = [RawMessage(role=role, content=content) for role, content in CONVERSATIONS[name]]
    expected = chat_format.ChatFormat(meta).encode_dialog_prompt(dialog).tokens
    assert tokenizer.encode(messages_of(CONVERSATIONS[name])) == expected


def test_real_problems_have_the_published_ids(tokenizer, meta, data_dir):
    paths = ("mbpp/mbpp_full.visible.jsonl", "gsm8k/gsm8k_test.visible.jsonl", "os_interaction/os_cycleqd.visible.jsonl")
    for path in paths:
        with (data_dir / path).open(encoding="utf-8") as file:
            for _, line in zip(range(100), file, strict=False):
                conversation = [(USER, line), (ASSISTANT, "\n".join(map(str, json.loads(line).values())))]
                assert tokenizer.encode(messages_of(conversation)) == published_ids(meta, conversation)


def test_the_package_trains_with_the_published_template(tokenizer, meta):
    published = tokenizer._tokenizer
    for conversation in CONVERSATIONS.values():
        rendered = published.apply_chat_template(
            messages_of(conversation), chat_template=LLAMA3_TEMPLATE, tokenize=True, return_dict=False
        )
        assert rendered == published_ids(meta, conversation, add_generation_prompt=False)


def test_a_reply_ends_with_eot_or_end_of_text(tokenizer, meta):
    assert tokenizer.stop_ids == (128001, 128009)
    ids, learned = tokenizer.encode_for_training(messages_of([(USER, "2+2?"), (ASSISTANT, "4.")]))
    assert [i for i, mask in zip(ids, learned, strict=True) if mask] == [*meta.encode("4.", bos=False, eos=False), 128009]
    assert tokenizer.decode([*meta.encode(" Größe 日本\n", bos=False, eos=False), 128009]) == " Größe 日本\n"


@pytest.mark.exhaustive
def test_the_same_tokenizer_in_a_gguf_file(tokenizer, vocabulary, meta, tmp_path):
    writer = pytest.importorskip("gguf", reason="the gguf package, which writes the file, is not installed").GGUFWriter
    tokens, merges = vocabulary
    file = writer(tmp_path / "llama3.gguf", "llama")
    file.add_context_length(8192)
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("llama-bpe")
    file.add_token_list(tokens)
    file.add_token_types([1] * 128000 + [3] * 256)
    file.add_token_merges([" ".join(pair) for pair in merges])
    file.add_bos_token_id(128000)
    file.add_eos_token_id(128009)
    file.add_chat_template(TEMPLATE)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    read = gguf.gguf_tokenizer(tmp_path / "llama3.gguf")
    assert read.stop_ids == (128001, 128008, 128009)
    assert read.bos_id == 128000
    for conversation in CONVERSATIONS.values():
        assert read.encode(messages_of(conversation)) == published_ids(meta, conversation)
