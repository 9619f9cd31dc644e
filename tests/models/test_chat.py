from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cycleqd_jax.models import chat
from cycleqd_jax.types import InputError


def test_ids_are_those_of_transformers(tmp_path, tokenizer, conversations):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for loaded in (tokenizer, chat.ChatTokenizer.load(tmp_path)):
        for messages in conversations:
            for prompt in (True, False):
                want = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
                assert loaded.encode(messages, prompt) == want
                assert loaded.encode(messages, prompt) == want  # the second time from the cache


def test_saved_and_loaded_is_the_same(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    loaded = chat.ChatTokenizer.load(tmp_path)
    assert (loaded.stop_ids, loaded.pad_id, loaded.bos_id) == (tokenizer.stop_ids, tokenizer.pad_id, tokenizer.bos_id)
    assert loaded.vocab_size == tokenizer.vocab_size
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_the_cache_hands_out_copies(tokenizer, conversations):
    first = tokenizer.encode(conversations[0])
    first.append(0)
    assert tokenizer.encode(conversations[0]) == first[:-1]


def test_llama3_layout(tokenizer):
    ids = tokenizer.encode([{"role": "user", "content": "Bob"}])
    text = tokenizer._tokenizer.decode(ids)
    user = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nBob<|eot_id|>"
    assert text == user + "<|start_header_id|>assistant<|end_header_id|>\n\n"


def test_text_survives(tokenizer, conversations):
    for conversation in conversations:
        for message in conversation:
            ids = tokenizer._tokenizer.encode(message["content"], add_special_tokens=False)
            assert tokenizer.decode([*ids, tokenizer.stop_ids[-1]]) == message["content"]


def test_training_is_consistent_with_generation(tokenizer, conversations):
    messages = conversations[1]
    ids, mask = tokenizer.encode_for_training(messages)
    assert ids == tokenizer.encode(messages, add_generation_prompt=False)
    assert len(mask) == len(ids)
    learned = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = tokenizer.encode(messages[:i])
            assert ids[: len(prompt)] == prompt
            end = next(j for j in range(len(prompt), len(ids)) if ids[j] in tokenizer.stop_ids)
            assert tokenizer.decode(ids[len(prompt) : end]) == message["content"].strip()
            learned += range(len(prompt), end + 1)
    assert [i for i, flag in enumerate(mask) if flag] == learned


def test_an_empty_reply_is_a_stop_token(tokenizer, conversations):
    ids, mask = tokenizer.encode_for_training(conversations[2])
    assert mask == [False] * (len(ids) - 1) + [True]
    assert ids[-1] in tokenizer.stop_ids


def test_training_refuses_what_generation_would_not_feed(tokenizer, conversations):
    with pytest.raises(InputError, match="without one"):
        tokenizer.encode_for_training(conversations[0])
    forgetful = "{% for m in messages[-2:] %}{{ m['role'] + m['content'] }}<|eot_id|>{% endfor %}"
    other = chat.train_tiny_tokenizer(["a"], 300)
    other._tokenizer.chat_template = forgetful
    with pytest.raises(InputError, match="plain chat template"):
        other.encode_for_training(conversations[1])
    other = chat.train_tiny_tokenizer(["a"], 300)
    other._tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="stop token"):
        other.encode_for_training(conversations[1])


def test_what_the_template_refuses(tokenizer, conversations):
    other = chat.train_tiny_tokenizer(["a"], 300)
    other._tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match=r"system, user.*not supported"):
        other.encode(conversations[1])


def test_tiny_tokenizer_is_deterministic(tmp_path):
    texts = [f"SELECT c{i} FROM t{i % 7} WHERE x = 'name{i}'" for i in range(200)]
    for name in ("a", "b"):
        chat.train_tiny_tokenizer(texts, 400).save(tmp_path / name)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_names_and_numbers_have_one_spelling(tokenizer):
    def tokens(text):
        return tokenizer._tokenizer.tokenize(text)

    assert tokens("12 345") == ["1", "2", "Ġ", "3", "4", "5"]
    name = tokens("zorbel")
    for around in ("'{}'", '"{}"', "({})", "/{}", "x_{}", "={}", "\n{}"):
        before, after = around.split("{}")
        assert tokens(around.format("zorbel")) == [*tokens(before), *name, *tokens(after)]


def test_vocabulary_sizes():
    with pytest.raises(InputError, match=r"at least 261.*200"):
        chat.train_tiny_tokenizer(["a"], 200)
    assert chat.train_tiny_tokenizer(["some words, " * 50], 280).vocab_size <= 280


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda f: (f / "tokenizer_config.json").unlink(), "tokenizer_config.json"),
        (lambda f: (f / "chat_template.jinja").unlink(), "chat template"),
        (lambda f: (f / "tokenizer.json").write_text("{", encoding="utf-8"), "tokenizer"),
        (lambda f: (f / "generation_config.json").write_text("{", encoding="utf-8"), "generation_config.json"),
    ],
)
def test_broken_folders(tmp_path, tokenizer, spoil, named):
    tokenizer.save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=named):
        chat.ChatTokenizer.load(tmp_path)


def test_stop_ids_without_a_generation_config(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert chat.ChatTokenizer.load(tmp_path).stop_ids == (4,)


def test_import_needs_neither_torch_nor_transformers():
    code = (
        "import sys; import cycleqd_jax.models.chat, cycleqd_jax.models.hf, cycleqd_jax.engine; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
