"""Models that do not belong together are refused before any weight is read."""

from __future__ import annotations

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import open_checkpoint
from cycleqd_jax.models.preflight import preflight
from cycleqd_jax.types import InputError


@pytest.fixture
def pair(tmp_path, make_config, make_params, tokenizer):
    config = make_config(vocab_size=tokenizer.vocab_size)
    hf.save(tmp_path / "base", config, make_params(config), tokenizer=tokenizer)
    shutil.copytree(tmp_path / "base", tmp_path / "expert")
    return tmp_path / "base", tmp_path / "expert"


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
def test_other_architectures_are_refused(pair, make_config, make_params, tokenizer, changes, named):
    base, expert = pair
    config = make_config(**({"vocab_size": tokenizer.vocab_size} | changes))
    hf.save(expert, config, make_params(config))
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


@pytest.mark.parametrize("part", ["merges", "pre_tokenizer", "normalizer", "decoder", "model", "added tokens"])
def test_same_vocabulary_but_other_ids_for_a_text(pair, part):
    base, expert = pair

    def change(content):
        if part == "merges":
            content["model"]["merges"].reverse()
        elif part == "model":
            content["model"]["ignore_merges"] = True
        elif part == "added tokens":
            content["added_tokens"][0]["lstrip"] = True
        else:
            content[part] = {"type": "Lowercase"}

    edit_json(expert / "tokenizer.json", change)
    with pytest.raises(InputError, match=f"as its {part}, as in the tokenizer of .*base, got .* in .*expert"):
        preflight(base, [expert])


def test_merges_may_be_written_in_two_ways(pair):
    base, expert = pair

    def change(content):
        pairs = content["model"]["merges"]
        content["model"]["merges"] = [" ".join(pair) if isinstance(pair, list) else pair.split(" ") for pair in pairs]

    edit_json(expert / "tokenizer.json", change)
    preflight(base, [expert])


def test_chat_templates(pair):
    base, expert = pair
    template = (expert / "chat_template.jinja").read_text(encoding="utf-8")
    (expert / "chat_template.jinja").write_text(template.replace("<|eot_id|>", "<|end|>"), encoding="utf-8")
    with pytest.raises(InputError, match=r"chat template.*<\|eot_id\|>.*got .*<\|end\|>.*model.tokenizer"):
        preflight(base, [expert])
    preflight(base, [expert], tokenizer=base)
    # the same template in its other two places
    (expert / "chat_template.jinja").unlink()
    edit_json(expert / "tokenizer_config.json", lambda c: c.update(chat_template=template))
    preflight(base, [expert])
    edit_json(expert / "tokenizer_config.json", lambda c: c.update(chat_template=[{"name": "default", "template": template}]))
    preflight(base, [expert])
    edit_json(expert / "tokenizer_config.json", lambda c: c.pop("chat_template"))
    with pytest.raises(InputError, match=r"chat template.*got none"):
        preflight(base, [expert])
    (expert / "chat_template.json").write_text(json.dumps({"chat_template": template}), encoding="utf-8")
    preflight(base, [expert])


def test_what_changes_no_chat_may_differ(pair):
    base, expert = pair

    def change(content):
        content.update(post_processor=None, truncation={"max_length": 5}, version="2.0")
        content["model"]["dropout"] = None

    edit_json(expert / "tokenizer.json", change)
    preflight(base, [expert])


def test_stop_tokens(pair):
    base, expert = pair
    edit_json(expert / "generation_config.json", lambda c: c.update(eos_token_id=4))
    with pytest.raises(InputError, match=r"stop tokens \[1, 4\] of .*got \[4\].*model.tokenizer"):
        preflight(base, [expert])
    preflight(base, [expert], tokenizer=base)


def test_the_shortest_context_counts(pair):
    base, expert = pair
    edit_json(expert / "config.json", lambda c: c.update(max_position_embeddings=32))
    assert preflight(base, [expert]).context_length == 32
    assert preflight(base, [base]).context_length == 64


def test_the_chosen_tokenizer_must_fit_too(pair, tmp_path):
    base, expert = pair
    edit_json(expert / "tokenizer.json", lambda c: c["model"]["merges"].reverse())
    with pytest.raises(InputError, match="merges"):
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
    from cycleqd_jax.models.tokenizer import ChatTokenizer

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
