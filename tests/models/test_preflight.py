"""Models that do not belong together are refused before any weight is read."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import open_checkpoint
from cycleqd_jax.models.preflight import preflight
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.types import InputError


@pytest.fixture
def pair(tmp_path, make_config, make_params, tokenizer):
    config = make_config(vocab_size=tokenizer.vocab_size)
    hf.save(tmp_path / "base", config, make_params(config), tokenizer=tokenizer)
    shutil.copytree(tmp_path / "base", tmp_path / "expert")
    return tmp_path / "base", tmp_path / "expert"


def zeros(config):
    """Weights that nobody reads."""
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), llama.abstract_params(config))


def edit_json(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_fine_tunings_belong_together(pair, make_config):
    base, expert = pair
    found = preflight(base, [expert, base])
    assert found.config == open_checkpoint(base).config
    assert [model.where for model in found.experts] == [expert, base]
    assert found.base.nbytes == (base / "model.safetensors").stat().st_size - header_size(base)
    (expert / "tokenizer.json").unlink()
    preflight(base, [expert])


def header_size(folder):
    return 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")


def test_no_weight_is_read(pair):
    base, expert = pair
    tensors = load_file(expert / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * np.nan
    save_file(tensors, expert / "model.safetensors")
    preflight(base, [expert])
    with pytest.raises(InputError, match=r"NaN or Inf in tensor model\.norm\.weight"):
        hf.load(expert)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 24}, "hidden_size 32 of the base .*base, got 24 in the expert"),
        ({"num_hidden_layers": 2}, "num_hidden_layers 3 of the base .*base, got 2 in the expert"),
        ({"rope_theta": 1e4}, "rope_theta 500000.0 of the base .*base, got 10000.0 in the expert"),
        ({"dtype": "bfloat16"}, "dtype 'float32'.*'bfloat16'.*model.dtype"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings False.*True"),
        ({"model_type": "mistral"}, "model_type 'llama'.*'mistral'"),
        ({"model_type": "qwen3", "qk_norm": True}, "'qwen3'"),
        ({"attention_bias": True, "attention_out_bias": True}, "attention_bias False.*True"),
    ],
)
def test_other_architectures_are_refused(pair, make_config, tokenizer, changes, named):
    base, expert = pair
    config = make_config(**({"vocab_size": tokenizer.vocab_size} | changes))
    hf.save(expert, config, zeros(config))
    with pytest.raises(InputError, match=named) as refused:
        preflight(base, [base, expert])
    assert f"in the expert {expert}; " in str(refused.value)


def test_a_dtype_by_name_settles_dtypes(pair, make_config, make_params, tokenizer):
    base, expert = pair
    config = make_config(vocab_size=tokenizer.vocab_size, dtype="bfloat16")
    hf.save(expert, config, make_params(config))
    assert preflight(base, [expert], dtype="float32").config.dtype == "float32"
    assert hf.load(expert, dtype="float32")[1]["norm"].dtype == jnp.float32


def test_padded_vocabularies(pair, make_config, make_params, tokenizer):
    base, expert = pair
    size = tokenizer.vocab_size
    config = make_config(vocab_size=size + 5)
    hf.save(expert, config, make_params(config), tokenizer=tokenizer)
    with pytest.raises(InputError, match=rf"vocab_size {size} of .*got {size + 5} in the expert.*model.vocab_size={size}"):
        preflight(base, [expert])
    assert preflight(base, [expert], vocab_size=size).config.vocab_size == size
    with pytest.raises(InputError, match=rf"at most {size}, as in .*base, got {size + 5}"):
        preflight(base, [expert], vocab_size=size + 5)
    with pytest.raises(InputError, match=rf"below vocab_size = {size - 1}, got id {size - 1}"):
        preflight(base, [expert], vocab_size=size - 1)


def test_other_vocabulary(pair):
    base, expert = pair

    def swap(content):
        vocabulary = content["model"]["vocab"]
        a, b = sorted(vocabulary)[-2:]
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]

    edit_json(expert / "tokenizer.json", swap)
    ids = json.loads((expert / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    last = max(ids)
    second = sorted(ids)[-2]
    with pytest.raises(InputError, match=f"id {ids[last]} for the token '{second}'.*got id {ids[second]} in .*expert"):
        preflight(base, [expert])


STRIP = {"type": "Strip", "content": "e", "start": 1, "stop": 0}
OTHER_IDS = {
    "merges": lambda c: c["model"]["merges"].reverse(),
    "pre_tokenizer": lambda c: c["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
    "normalizer": lambda c: c.update(normalizer={"type": "Lowercase"}),
    "stripping": lambda c: c["added_tokens"][0].update(lstrip=True),
    "single word": lambda c: c["added_tokens"][2].update(single_word=True),
}
OTHER_TEXT = {
    "decoder": lambda c: c.update(decoder={"type": "Sequence", "decoders": [c["decoder"], STRIP]}),
    "special": lambda c: c["added_tokens"][3].update(special=False),
}


@pytest.mark.parametrize("part", [*OTHER_IDS, *OTHER_TEXT])
def test_same_vocabulary_but_other_ids_or_text(pair, part):
    base, expert = pair
    edit_json(expert / "tokenizer.json", {**OTHER_IDS, **OTHER_TEXT}[part])
    what = "as ids in the text" if part in OTHER_IDS else r"as the text of the ids \["
    with pytest.raises(
        InputError, match=f"expected .* {what}.*, as in the tokenizer of .*base, got .* in .*expert.*model.tokenizer"
    ):
        preflight(base, [expert])
    (warning,) = preflight(base, [expert], tokenizer=base).warnings
    assert warning.startswith("warning: expected ")
    assert warning.endswith(f"in {expert}; all models use the tokenizer of {base}")


def test_merges_may_be_written_in_two_ways(pair):
    base, expert = pair

    def change(content):
        pairs = content["model"]["merges"]
        content["model"]["merges"] = [" ".join(pair) if isinstance(pair, list) else pair.split(" ") for pair in pairs]

    edit_json(expert / "tokenizer.json", change)
    preflight(base, [expert])


def test_chat_templates_that_differ_only_with_tools(pair):
    base, expert = pair
    template = (expert / "chat_template.jinja").read_text(encoding="utf-8")
    (expert / "chat_template.jinja").write_text(template + "{{ tools | tojson if tools }}", encoding="utf-8")
    preflight(base, [expert])
    with pytest.raises(InputError, match=r"chat template.*got .*\"function\".*set model.tokenizer"):
        preflight(base, [expert], tools=True)
    preflight(base, [expert], tokenizer=base, tools=True)


def test_chat_templates(pair):
    base, expert = pair
    template = (expert / "chat_template.jinja").read_text(encoding="utf-8")
    (expert / "chat_template.jinja").write_text(template.replace("<|eot_id|>", "<|end|>"), encoding="utf-8")
    with pytest.raises(InputError, match=r"chat template.*<\|eot_id\|>.*got .*<\|end\|>.*model.tokenizer"):
        preflight(base, [expert])
    preflight(base, [expert], tokenizer=base)
    # one that can't be rendered: the message is one line
    (expert / "chat_template.jinja").write_text("{% for", encoding="utf-8")
    with pytest.raises(InputError, match=r"chat template.*got an error for a conversation in .*model.tokenizer") as refused:
        preflight(base, [expert])
    assert "\n" not in str(refused.value)
    # the same template in its other two places
    (expert / "chat_template.jinja").unlink()
    edit_json(expert / "tokenizer_config.json", lambda c: c.update(chat_template=template))
    preflight(base, [expert])
    edit_json(expert / "tokenizer_config.json", lambda c: c.update(chat_template=[{"name": "default", "template": template}]))
    preflight(base, [expert])
    edit_json(expert / "tokenizer_config.json", lambda c: c.pop("chat_template"))
    with pytest.raises(InputError, match=r"chat template.*got none"):
        preflight(base, [expert])
    # a processor's file, which no tokenizer reads
    (expert / "chat_template.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    with pytest.raises(InputError, match=r"chat template.*got none"):
        preflight(base, [expert])
    edit_json(expert / "tokenizer_config.json", lambda c: c.update(chat_template=template + "{# rendered alike #}"))
    preflight(base, [expert])
    # the same file, and another token for what it names
    edit_json(expert / "tokenizer_config.json", lambda c: c.update(chat_template=template, bos_token="<|end_of_text|>"))
    with pytest.raises(InputError, match=r"chat template.*begin_of_text.*got .*end_of_text"):
        preflight(base, [expert])


def test_what_changes_no_chat_may_differ(pair):
    base, expert = pair

    def change(content):
        content.update(post_processor=None, version="1.0")
        content["model"] |= {"dropout": None, "ignore_merges": True}
        content["pre_tokenizer"]["pretokenizers"][1]["trim_offsets"] = False
        content["decoder"] = {"type": "Sequence", "decoders": [content["decoder"]]}
        content["normalizer"] = {"type": "Sequence", "normalizers": []}

    edit_json(expert / "tokenizer.json", change)
    preflight(base, [expert])


def add_token(folder, content, i):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    edit_json(folder / "tokenizer.json", lambda c: c["added_tokens"].append({"id": i, "content": content, **flags}))


def test_a_token_in_padding_rows(pair, make_config, make_params, tokenizer):
    base, expert = pair
    size = tokenizer.vocab_size
    config = make_config(vocab_size=size + 5)
    for folder in pair:
        hf.save(folder, config, make_params(config), tokenizer=tokenizer)
    add_token(expert, "<|tool|>", size)
    with pytest.raises(
        InputError, match=rf"none for the token '<\|tool\|>'.*got id {size} in .*model.tokenizer={expert} to keep"
    ):
        preflight(base, [expert, base])
    for chosen in pair:
        (warning,) = preflight(base, [expert, base], tokenizer=chosen).warnings
        assert f"all models use the tokenizer of {chosen}" in warning
    assert preflight(base, [expert, base], vocab_size=size).warnings == ()
    with pytest.raises(InputError, match=rf"below vocab_size = {size}, got id {size} in .*no row; set model.tokenizer"):
        preflight(base, [expert], tokenizer=expert, vocab_size=size)


def test_a_reserved_token_with_another_name(pair):
    base, expert = pair
    name = tokenizer_of(base)["added_tokens"][3]["content"]

    def rename(content):
        vocabulary = content["model"]["vocab"]
        vocabulary["<|im_end|>"] = vocabulary.pop(name)
        content["added_tokens"][3]["content"] = "<|im_end|>"

    edit_json(expert / "tokenizer.json", rename)
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        text = (expert / file).read_text(encoding="utf-8")
        (expert / file).write_text(text.replace(name, "<|im_end|>"), encoding="utf-8")
    with pytest.raises(
        InputError,
        match=r"expected id 3 for the token '<\|end_header_id\|>'.*got id 3 for '<\|im_end\|>' in .*set model.tokenizer to",
    ):
        preflight(base, [expert])
    assert preflight(base, [expert], tokenizer=expert).warnings


def tokenizer_of(folder):
    return json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))


def test_a_tokenizer_that_transformers_has_saved_again(pair):
    from transformers import PreTrainedTokenizerFast

    base, expert = pair
    PreTrainedTokenizerFast.from_pretrained(expert).save_pretrained(expert)
    assert (expert / "tokenizer_config.json").read_bytes() != (base / "tokenizer_config.json").read_bytes()
    assert preflight(base, [expert]).warnings == ()


@pytest.mark.parametrize("named", ["TokenizerOfTheFuture", "PreTrainedTokenizerFast"])
def test_a_tokenizer_without_a_model(pair, tmp_path, named):
    """That of an adapter, as trainers save it; the class that it names may not be known here."""
    base, expert = pair
    settings = {"peft_type": "LORA", "base_model_name_or_path": "/nowhere/base"}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(expert / name, tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / "tokenizer_config.json", lambda c: c.update(tokenizer_class=named))
    assert preflight(base, [expert], tokenizer=tmp_path / "adapter").warnings == ()
    edit_json(tmp_path / "adapter" / "tokenizer.json", lambda c: c["model"]["merges"].reverse())
    assert len(preflight(base, [expert], tokenizer=tmp_path / "adapter").warnings) == 2  # of the base, and of the expert


def test_stop_tokens(pair):
    base, expert = pair
    edit_json(expert / "generation_config.json", lambda c: c.update(eos_token_id=4))
    with pytest.raises(InputError, match=r"stop tokens \[1, 4\] of .*got \[4\].*model.tokenizer"):
        preflight(base, [expert])
    preflight(base, [expert], tokenizer=base)
    # without a generation_config.json, those of config.json count, unless they are among the base's
    (expert / "generation_config.json").unlink()
    preflight(base, [expert])
    edit_json(expert / "config.json", lambda c: c.update(eos_token_id=4))
    preflight(base, [expert])
    edit_json(expert / "config.json", lambda c: c.update(eos_token_id=[4, 3]))
    with pytest.raises(InputError, match=r"stop tokens \[1, 4\] of .*got \[3, 4\].*model.tokenizer"):
        preflight(base, [expert])


def test_stop_tokens_of_a_tokenizer_alone(pair):
    base, expert = pair
    for folder in pair:
        (folder / "generation_config.json").unlink()
        edit_json(folder / "config.json", lambda c: c.update(eos_token_id=None))
    edit_json(expert / "tokenizer_config.json", lambda c: c.update(eos_token="<|end_of_text|>"))
    preflight(base, [expert])
    edit_json(expert / "config.json", lambda c: c.update(eos_token_id=3))
    preflight(base, [expert])
    (expert / "generation_config.json").write_text('{"eos_token_id": [3, 4]}', encoding="utf-8")
    with pytest.raises(InputError, match=r"stop tokens \[4\] of .*base, got \[3, 4\] in .*expert; set model.tokenizer"):
        preflight(base, [expert])
    (expert / "generation_config.json").write_text('{"eos_token_id": [4, 100000]}', encoding="utf-8")
    preflight(base, [expert])


def test_the_shortest_context_counts(pair):
    base, expert = pair
    edit_json(expert / "config.json", lambda c: c.update(max_position_embeddings=32))
    assert preflight(base, [expert]).context_length == 32
    assert preflight(base, [base]).context_length == 64


def test_the_chosen_tokenizer_must_fit_too(pair, tmp_path):
    base, expert = pair
    vocabulary = json.loads((expert / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    swapped = {"a": vocabulary["b"], "b": vocabulary["a"]}
    edit_json(expert / "tokenizer.json", lambda c: c["model"]["vocab"].update(swapped))
    with pytest.raises(InputError, match=r"id .* for the token 'a'.*use fine-tunings of one base$"):
        preflight(base, [base], tokenizer=expert)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(InputError, match=r"tokenizer files in .*nothing"):
        preflight(base, [base], tokenizer=tmp_path / "nothing")


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda f: (f / "tokenizer.json").write_text("[", encoding="utf-8"), "JSON in .*tokenizer.json"),
        (lambda f: edit_json(f / "tokenizer.json", lambda c: c.pop("model")), "tokenizer.json"),
        (lambda f: edit_json(f / "config.json", lambda c: c.update(hidden_size=31)), "hidden_size|shape"),
        (lambda f: shutil.rmtree(f), "got no such folder"),
    ],
)
def test_broken_experts(pair, spoil, named):
    base, expert = pair
    spoil(expert)
    with pytest.raises(InputError, match=named):
        preflight(base, [expert])


def test_tokenizer_files_are_copied_byte_for_byte(pair, make_config, tmp_path):
    base, _ = pair
    (base / "special_tokens_map.json").write_text('{"bos_token":   "<|begin_of_text|>"}', encoding="utf-8")
    edit_json(base / "tokenizer_config.json", lambda c: c.update(a_key_of_the_future=1))
    edit_json(base / "generation_config.json", lambda c: c.update(temperature=0.6))
    config, params = hf.load(base)
    hf.save(tmp_path / "out", config, params, tokenizer=ChatTokenizer.load(base))
    copied = [path.name for path in base.iterdir() if path.name not in ("model.safetensors", "config.json")]
    assert len(copied) == 5
    for name in copied:
        assert (base / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    assert jax.tree.structure(hf.load(tmp_path / "out")[1]) == jax.tree.structure(params)


def test_a_window_that_no_text_reaches_may_differ(pair, make_config, make_params, tokenizer):
    base, expert = pair
    for folder, window in ((base, None), (expert, 48)):
        config = make_config(vocab_size=tokenizer.vocab_size, model_type="mistral")
        hf.save(folder, config, make_params(config), tokenizer=tokenizer)
        edit_json(folder / "config.json", lambda c, window=window: c.update(sliding_window=window))
    assert preflight(base, [expert]).context_length == 48


def test_templates_without_a_default_are_refused(pair):
    base, expert = pair
    template = (expert / "chat_template.jinja").read_text(encoding="utf-8")
    for folder in pair:
        (folder / "chat_template.jinja").unlink()
        named = [{"name": "rag", "template": template}, {"name": "tool_use", "template": template}]
        edit_json(folder / "tokenizer_config.json", lambda c, named=named: c.update(chat_template=named))
    with pytest.raises(InputError, match=r"expected a default chat template .*, got templates named rag, tool_use; name one"):
        ChatTokenizer.load(base)
    edit_json(expert / "tokenizer_config.json", lambda c: c["chat_template"].append({"name": "default", "template": template}))
    with pytest.raises(InputError, match=r"chat template of .* with none, got"):
        preflight(base, [expert])
    assert ChatTokenizer.load(expert).chat_template == template


def test_every_tokenizer_of_gguf_files_is_compared(tmp_path, monkeypatch):
    gguf = pytest.importorskip("gguf", reason="the gguf package, which writes the test files, is not installed")
    from .. import tiny_gguf

    kind = gguf.GGMLQuantizationType.F32
    base, same = (tiny_gguf.write(tmp_path / f"{name}.gguf", kind) for name in ("base", "same"))
    monkeypatch.setattr(tiny_gguf, "BYTES", [*tiny_gguf.BYTES[1::-1], *tiny_gguf.BYTES[2:]])
    other = tiny_gguf.write(tmp_path / "other.gguf", kind)
    assert preflight(base, [same, same]).warnings == ()
    for experts in ([other], [same, other], [same, same, other]):  # one that is opened may get the memory of one before
        with pytest.raises(InputError, match="expected id 3 for the token"):
            preflight(base, experts)
