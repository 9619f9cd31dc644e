from __future__ import annotations

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import open_checkpoint
from cycleqd_jax.types import InputError


@pytest.fixture
def folder(tmp_path, make_config, make_params, tokenizer):
    config = make_config(vocab_size=tokenizer.vocab_size)
    hf.save(tmp_path / "model", config, make_params(config), tokenizer=tokenizer, card="# A model\n")
    return tmp_path / "model"


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "dtype",
    [pytest.param("float32", marks=pytest.mark.exhaustive), "bfloat16", pytest.param("float16", marks=pytest.mark.exhaustive)],
)
@pytest.mark.parametrize("tied", [False, True])
def test_round_trip_is_bit_exact(tmp_path, make_config, make_params, assert_identical, dtype, tied):
    config = make_config(dtype=dtype, tie_word_embeddings=tied)
    params = make_params(config)
    hf.save(tmp_path / "one", config, params)
    hf.save(tmp_path / "many", config, params, max_shard_bytes=20_000)
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 3
    for name in ("one", "many"):
        got_config, got = hf.load(tmp_path / name)
        assert got_config == config
        assert_identical(got, params)
    assert ("lm_head.weight" in load_file(tmp_path / "one" / "model.safetensors")) == (not tied)


def test_cast_on_save(tmp_path, make_config, make_params, assert_identical):
    config = make_config()
    params = make_params(config)
    hf.save(tmp_path / "m", config, params, dtype="bfloat16")
    got_config, got = hf.load(tmp_path / "m")
    assert got_config.dtype == "bfloat16"
    assert_identical(got, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params))


@pytest.mark.exhaustive
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
def test_transformers_gives_our_logits(tmp_path, make_config, make_params, tokenizer, conversations, tied, sharded):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = make_config(vocab_size=tokenizer.vocab_size, tie_word_embeddings=tied)
    params = make_params(config)
    hf.save(tmp_path / "m", config, params, tokenizer=tokenizer, max_shard_bytes=30_000 if sharded else 10**9)
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    assert set(model.generation_config.eos_token_id) == set(tokenizer.stop_ids)
    ids = AutoTokenizer.from_pretrained(tmp_path / "m").apply_chat_template(conversations[0], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        want = model(ids).logits.numpy()
    got = llama.forward(params, config, jnp.asarray(ids.numpy()))
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_what_transformers_wrote_is_read(tmp_path, make_config, make_params, assert_identical):
    pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config = make_config(tie_word_embeddings=True, rope_scaling=llama.Llama3RopeScaling(8.0, 1.0, 4.0, 16))
    params = make_params(config)
    hf.save(tmp_path / "ours", config, params)
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    got_config, got = hf.load(tmp_path / "theirs")
    assert got_config == config
    assert_identical(got, params)


def test_files_of_a_saved_model(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
    }
    assert [path.name for path in folder.parent.iterdir()] == ["model"]  # nothing is left of the work


def test_a_failed_save_leaves_what_was_there(folder, make_config, make_params):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = make_config()
    params = make_params(config)
    params["norm"] = params["norm"].at[3].set(jnp.nan)
    with pytest.raises(InputError, match=r"finite.*model\.norm\.weight"):
        hf.save(folder, config, params)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    hf.save(folder, config, make_params(config))
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_save_overwrites_nothing_but_models(tmp_path, make_config, make_params):
    config = make_config()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "dear diary.txt").write_text("…", encoding="utf-8")
    with pytest.raises(InputError, match="notes"):
        hf.save(tmp_path / "notes", config, make_params(config))


@pytest.mark.parametrize("other", ["thesis.tex", ".git", "model.bin", "models.safetensors"])
def test_a_folder_with_anything_else_is_left_alone(folder, make_config, make_params, other):
    """A config.json does not make it a model folder: other programs have one too."""
    (folder / other).mkdir() if other == ".git" else (folder / other).write_text("years of work", encoding="utf-8")
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(InputError, match=rf"got {other} in "):
        hf.save(folder, make_config(), make_params(make_config()))
    assert sorted(path.name for path in folder.iterdir()) == before


def test_places_that_can_not_be_written(tmp_path, make_config, make_params, monkeypatch):
    config = make_config()
    params = make_params(config)
    (tmp_path / "file").write_text("text", encoding="utf-8")
    for place in (tmp_path / "file", tmp_path / "file" / "below", "/proc/there/is/none"):
        with pytest.raises(InputError, match=str(place)):
            hf.save(place, config, params)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    hf.save(".", config, params)
    assert hf.load(tmp_path / "empty")[0] == config


def test_a_link_stays_a_link(folder, make_config, make_params):
    link = folder.parent / "link"
    link.symlink_to(folder)
    config = make_config()
    hf.save(link, config, make_params(config))
    assert link.is_symlink()
    assert hf.load(folder)[0] == config


def test_what_was_there_comes_back_when_renaming_fails(folder, make_config, make_params, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rename = hf.os.rename

    def fail(source, target):
        if str(target) == str(folder) and "replaced" not in str(source):
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(hf.os, "rename", fail)
    config = make_config()
    with pytest.raises(OSError, match="no"):
        hf.save(folder, config, make_params(config))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_mixed_dtypes_are_read_as_the_matrices(tmp_path, make_config, make_params, assert_identical):
    config = make_config(dtype="bfloat16")
    params = make_params(config)
    hf.save(tmp_path / "m", config, params)
    edit_weights(tmp_path / "m", lambda t: t.update({n: x.astype(np.float32) for n, x in t.items() if "norm" in n}))
    got_config, got = hf.load(tmp_path / "m")
    assert got_config.dtype == "bfloat16"
    assert_identical(got, params)


@pytest.mark.exhaustive
def test_an_exported_folder_answers_in_another_process(folder):
    code = "import sys; from cycleqd_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "generate", str(folder), "How old?", "--max-new-tokens", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")


def test_overflow_of_a_cast_is_refused(tmp_path, make_config, make_params):
    config = make_config()
    params = make_params(config)
    params["norm"] = params["norm"].at[0].set(1e6)
    with pytest.raises(InputError, match=r"finite.*float16"), np.errstate(over="ignore"):
        hf.save(tmp_path / "m", config, params, dtype="float16")
    assert not (tmp_path / "m").exists()


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(tmp_path, make_config, make_params, dtype, value):
    config = make_config(dtype=dtype)
    hf.save(tmp_path / "m", config, make_params(config))

    def change(tensors):
        tensors[Q] = tensors[Q].copy()
        tensors[Q][2, 3] = value

    edit_weights(tmp_path / "m", change)
    with pytest.raises(InputError, match=rf"NaN or Inf.*{Q}.*model\.safetensors"):
        hf.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop(Q), f"no {Q}"),
        (lambda t: t.update({"model.layers.1.self_attn.q_proj.bias": t[Q][0].copy()}), "q_proj.bias"),
        (lambda t: t.update({Q: t[Q][:-1].copy()}), rf"\[32, 32\].*{Q}.*\[31, 32\]"),
        (lambda t: t.update({Q: t[Q].astype(np.int8)}), f"{Q}.*I8"),
    ],
)
def test_weights_that_do_not_fit_the_config(folder, change, named):
    edit_weights(folder, change)
    with pytest.raises(InputError, match=named):
        hf.load(folder)
    with pytest.raises(InputError, match=named):
        open_checkpoint(folder)


def truncate(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda f: truncate(f, -1000), "whole safetensors.*model.safetensors"),
        (lambda f: truncate(f, 100), "whole safetensors.*100 bytes"),
        (lambda f: truncate(f, 3), "whole safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x04" + bytes(7) + b"[[[["), "unreadable header"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors.*neither"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pytorch_model.bin.*save_pretrained"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{", encoding="utf-8"), "JSON in .*config.json"),
        (lambda f: shutil.rmtree(f), "got no such folder"),
    ],
)
def test_broken_folders(folder, spoil, named):
    spoil(folder)
    with pytest.raises(InputError, match=named):
        hf.load(folder)


def test_broken_shards(tmp_path, make_config, make_params):
    config = make_config()
    hf.save(tmp_path / "m", config, make_params(config), max_shard_bytes=20_000)
    index = tmp_path / "m" / "model.safetensors.index.json"
    good = json.loads(index.read_text(encoding="utf-8"))
    shard = good["weight_map"][Q]
    other = next(file for file in good["weight_map"].values() if file != shard)

    bad = good | {"weight_map": good["weight_map"] | {Q: other}}
    index.write_text(json.dumps(bad), encoding="utf-8")
    with pytest.raises(InputError, match=f"{Q}.*{other}"):
        hf.load(tmp_path / "m")
    for name in ("../elsewhere.safetensors", "absent.safetensors"):
        bad = good | {"weight_map": good["weight_map"] | {Q: name}}
        index.write_text(json.dumps(bad), encoding="utf-8")
        with pytest.raises(InputError, match="shard"):
            hf.load(tmp_path / "m")
    index.write_text(json.dumps(good), encoding="utf-8")
    hf.load(tmp_path / "m")
    (tmp_path / "m" / shard).unlink()
    with pytest.raises(InputError, match=shard):
        hf.load(tmp_path / "m")


def test_tied_head_that_is_there_twice(tmp_path, make_config, make_params, assert_identical):
    config = make_config(tie_word_embeddings=True)
    params = make_params(config)
    hf.save(tmp_path / "m", config, params)
    edit_weights(tmp_path / "m", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].copy()}))
    assert_identical(hf.load(tmp_path / "m")[1], params)
    edit_weights(tmp_path / "m", lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    with pytest.raises(InputError, match="ties them"):
        hf.load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda p: p.pop("norm"), "expected the leaves of the config, got no such leaf, 'norm', in the weights to save"),
        (lambda p: p.update(extra=p["norm"]), "got one that the config does not have, 'extra', in the weights"),
        (lambda p: p["layers"]["attn"].update(q=p["layers"]["attn"]["q"][:1]), "of the config for leaf 'layers/attn/q', got"),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_not_written(folder, change, named):
    config, params = hf.load(folder)
    change(params)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match=named):
        hf.save(folder, config, params)
    assert (folder / "model.safetensors").read_bytes() == before


def test_layers_beyond_the_config_are_not_dropped(tmp_path, make_config, make_params):
    config = make_config(num_hidden_layers=2)
    with pytest.raises(InputError, match="of the config for leaf 'layers/"):
        hf.save(tmp_path / "m", config.replace(num_hidden_layers=1), make_params(config))
    assert not (tmp_path / "m").exists()


def test_a_tied_config_with_a_head(tmp_path, make_config, make_params, assert_identical):
    config = make_config(tie_word_embeddings=True)
    params = make_params(config)
    head = params["embed_tokens"].T
    hf.save(tmp_path / "m", config, {**params, "lm_head": head})
    assert_identical(hf.load(tmp_path / "m")[1], params)
    with pytest.raises(InputError, match="expected lm_head to equal embed_tokens, which the config ties"):
        hf.save(tmp_path / "m", config, {**params, "lm_head": head + 1})
    assert_identical(hf.load(tmp_path / "m")[1], params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.dtype(jnp.bfloat16), "bfloat16"])
def test_dtypes_are_names_or_objects(tmp_path, make_config, make_params, dtype):
    config = make_config()
    hf.save(tmp_path / "m", config, make_params(config), dtype=dtype)
    assert hf.load(tmp_path / "m")[0].dtype == "bfloat16"
    got, params = hf.load(tmp_path / "m", dtype=dtype)
    assert (got.dtype, params["norm"].dtype) == ("bfloat16", jnp.bfloat16)
    for bad in ("float63", jnp.float64):
        with pytest.raises(InputError, match=r"dtype to be one of float32, bfloat16, float16, got .* as the argument dtype"):
            hf.load(tmp_path / "m", dtype=bad)
        with pytest.raises(InputError, match="as the argument dtype"):
            hf.save(tmp_path / "m", config, make_params(config), dtype=bad)
