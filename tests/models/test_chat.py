from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from cycleqd_jax.models.tokenizer import ChatTokenizer, train_tiny_tokenizer
from cycleqd_jax.types import InputError


def test_ids_are_those_of_transformers(tmp_path, tokenizer, conversations):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for loaded in (tokenizer, ChatTokenizer.load(tmp_path)):
        for messages in conversations:
            for prompt in (True, False):
                want = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
                assert loaded.encode(messages, prompt) == want
                assert loaded.encode(messages, prompt) == want  # the second time from the cache


def test_saved_and_loaded_is_the_same(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    loaded = ChatTokenizer.load(tmp_path)
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
    with pytest.raises(InputError, match="assistant message in each training conversation, got none"):
        tokenizer.encode_for_training(conversations[0])
    forgetful = "{% for m in messages[-2:] %}{{ m['role'] + m['content'] }}<|eot_id|>{% endfor %}"
    other = train_tiny_tokenizer(["a"], 300)
    other._tokenizer.chat_template = forgetful
    with pytest.raises(InputError, match="plain chat template"):
        other.encode_for_training(conversations[1])
    other = train_tiny_tokenizer(["a"], 300)
    other._tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match="stop token"):
        other.encode_for_training(conversations[1])


def test_what_the_template_refuses(tokenizer, conversations):
    other = train_tiny_tokenizer(["a"], 300)
    other._tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match=r"system, user.*not supported"):
        other.encode(conversations[1])


@pytest.mark.parametrize("template", ["{{ 1/0 }}", "{{ messages + 1 }}", "{{ none.x.y }}", "{% for"])
def test_what_goes_wrong_in_a_template(conversations, template):
    other = train_tiny_tokenizer(["a"], 300)
    other._tokenizer.chat_template = template
    with pytest.raises(
        InputError, match=r"that the chat template accepts, got messages of system, user.*Error: .*template"
    ) as refused:
        other.encode(conversations[1])
    assert "\n" not in str(refused.value)


def test_tiny_tokenizer_is_deterministic(tmp_path):
    texts = [f"SELECT c{i} FROM t{i % 7} WHERE x = 'name{i}'" for i in range(200)]
    for name in ("a", "b"):
        train_tiny_tokenizer(texts, 400).save(tmp_path / name)
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
        train_tiny_tokenizer(["a"], 200)
    assert train_tiny_tokenizer(["some words, " * 50], 280).vocab_size <= 280


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
        ChatTokenizer.load(tmp_path)


@pytest.mark.parametrize("template", ["{% for", "{{ raise_exception('no') }}", "{{ none.x.y }}", "{# nothing #}"])
def test_a_template_that_renders_no_message_is_refused_when_it_is_loaded(tmp_path, tokenizer, template):
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(InputError, match=r"^expected a chat template that renders a user's message, got .*; correct"):
        ChatTokenizer.load(tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("saved")
    tokenizer.save(folder)
    return folder


@pytest.mark.parametrize("content", [[], None, "x", 5])
def test_a_generation_config_is_an_object(saved, content):
    (saved / "generation_config.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"JSON object in .*generation_config.json, got"):
        ChatTokenizer.load(saved)


@pytest.mark.parametrize("value", [1.5, "x", [1, "x"], [None], [], {"a": 1}, -1, True, [[4]], 10**6, 10**30, "x" * 10000])
def test_stop_ids_are_ids_of_tokens(saved, value):
    (saved / "generation_config.json").write_text(json.dumps({"eos_token_id": value}), encoding="utf-8")
    with pytest.raises(InputError, match=r"eos_token_id in .*generation_config.json, got .*tokens") as refused:
        ChatTokenizer.load(saved)
    assert json.dumps(value)[:100] in str(refused.value)
    assert len(str(refused.value)) < 800


@pytest.mark.parametrize("value", [1.5, "x", [1], -1, 10**6])
def test_the_padding_token_is_the_id_of_a_token(saved, tmp_path, value):
    shutil.copytree(saved, tmp_path / "m")
    settings = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text(encoding="utf-8"))
    del settings["pad_token"]
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    generation = {"eos_token_id": 4, "pad_token_id": value}
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    with pytest.raises(InputError, match=r"pad_token_id in .*generation_config.json, got"):
        ChatTokenizer.load(tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text('{"eos_token_id": [4]}', encoding="utf-8")
    assert ChatTokenizer.load(tmp_path / "m").pad_id == 4


def test_a_stop_token_beyond_a_gap(saved, tmp_path):
    """Ids of added tokens may leave some out: there are fewer tokens than the largest id says."""
    shutil.copytree(saved, tmp_path / "m")
    content = json.loads((tmp_path / "m" / "tokenizer.json").read_text(encoding="utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    content["added_tokens"].append({"id": 1000, "content": "<|end|>", **flags})
    content["model"]["vocab"]["<|end|>"] = 1000
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "m" / "generation_config.json").write_text('{"eos_token_id": [4, 1000]}', encoding="utf-8")
    loaded = ChatTokenizer.load(tmp_path / "m")
    assert loaded.vocab_size < 1000
    assert loaded.stop_ids == (4, 1000)


def test_stop_ids_without_a_generation_config(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert ChatTokenizer.load(tmp_path).stop_ids == (4,)


@pytest.mark.parametrize(
    ("generation", "config", "own", "expected"),
    [
        ({"eos_token_id": 4}, [1, 3], "<|eot_id|>", (4,)),
        ({"eos_token_id": [4, 10**6]}, [1, 3], "<|eot_id|>", (4,)),
        ({"temperature": 0.5}, [1, 3], "<|eot_id|>", (1, 3)),
        (None, 3, "<|eot_id|>", (3,)),
        (None, [3, 10**6], None, (3,)),
        (None, 10**6, "<|eot_id|>", (4,)),
        (None, None, "<|end_of_text|>", (1,)),
    ],
)
def test_stop_tokens_are_those_of_transformers(tmp_path, tokenizer, generation, config, own, expected):
    tokenizer.save(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": config}), encoding="utf-8")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8")) | {"eos_token": own}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    loaded = ChatTokenizer.load(tmp_path)
    assert loaded.stop_ids == expected
    loaded.save(tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8"))
    assert written.items() >= (generation or {}).items()
    assert set(np.atleast_1d(written["eos_token_id"])) - {10**6} == set(expected)


def test_templates_beside_the_default_one_are_kept(tmp_path, tokenizer):
    tokenizer.save(tmp_path / "m")
    (tmp_path / "m" / "additional_chat_templates").mkdir()
    (tmp_path / "m" / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}", encoding="utf-8")
    loaded = ChatTokenizer.load(tmp_path / "m")
    for _ in range(2):
        loaded.save(tmp_path / "out")
    assert (tmp_path / "out" / "additional_chat_templates" / "rag.jinja").read_text(encoding="utf-8") == "{{ documents }}"
    conversation = [{"role": "user", "content": "hi"}]
    assert ChatTokenizer.load(tmp_path / "out").encode(conversation) == tokenizer.encode(conversation)


def test_import_needs_neither_torch_nor_transformers():
    code = (
        "import sys; import cycleqd_jax.models.tokenizer, cycleqd_jax.models.files.hf, cycleqd_jax.engine; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
