"""``cycleqd merge``: what it writes, how it streams, and what the disk may do."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import load_file

from cycleqd_jax.cli import main
from cycleqd_jax.engine import load_model
from cycleqd_jax.merging import load_recipe, merge_models
from cycleqd_jax.merging.card import merge_card
from cycleqd_jax.merging.settings import parse_setting
from cycleqd_jax.models.files.hub import repository_name
from cycleqd_jax.operators import linear, slerp, ties
from cycleqd_jax.types import tree_paths

from .conftest import write_models


def weights(folder):
    return {name: jnp.asarray(tensor) for name, tensor in load_file(Path(folder) / "model.safetensors").items()}


def equal(got, want, tol=1e-6):
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        np.testing.assert_allclose(np.asarray(got[name]), np.asarray(tensor), rtol=tol, atol=tol, err_msg=name)


@pytest.mark.exhaustive
def test_command(models, write_recipe, tmp_path, capsys):
    base, *experts = models
    recipe = write_recipe(
        merge_method="ties", base_model=base, models=[{"model": name} for name in experts],
        parameters={"weight": 1, "density": 0.3}, tokenizer_source="base",
    )  # fmt: skip
    out = tmp_path / "out"
    assert main(["merge", str(recipe), str(out)]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"model: {out}\n"
    assert "merge" in shown.err
    equal(weights(out), ties(weights(base), [weights(name) for name in experts], densities=0.3))
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"):
        if (Path(base) / file).exists():
            assert (out / file).read_bytes() == (Path(base) / file).read_bytes()
    assert json.loads((out / "config.json").read_text()) == json.loads((Path(base) / "config.json").read_text())
    assert (out / "mergekit_config.yml").read_text() == recipe.read_text()
    meta = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert "base_model" not in meta  # the models are folders of this machine, which the hub refuses
    assert load_model(str(out)).config == load_model(base).config
    assert main(["merge", str(recipe), str(out)]) == 0  # a merged model may be replaced
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.exhaustive
def test_a_merged_model_generates(models, write_recipe, tmp_path):
    recipe = write_recipe(merge_method="linear", models=[{"model": name} for name in models[1:]], parameters={"weight": 1})
    merge_models(recipe, tmp_path / "out")
    assert load_model(str(tmp_path / "out")).generate("fox", max_new_tokens=2) is not None


@pytest.mark.exhaustive
def test_dtypes_and_shards(tmp_path, write_recipe):
    """Sharded bfloat16 models become shards of another dtype; memory is that of single tensors."""
    from .conftest import tiny_config

    base, *experts = write_models(tmp_path / "m", tiny_config(dtype="bfloat16"), max_shard_bytes=20_000)
    assert len(list(Path(base).glob("*.safetensors"))) > 2
    recipe = write_recipe(
        merge_method="linear",
        models=[{"model": name, "parameters": {"weight": w}} for name, w in zip(experts, (1, 2, 3), strict=True)],
        dtype="bfloat16", out_dtype="torch.float32",
    )  # fmt: skip
    out = merge_models(recipe, tmp_path / "out", max_shard_bytes=30_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2

    def read(folder):
        tensors = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, "flax") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors

    want = linear([{name: x.astype(jnp.float32) for name, x in read(name).items()} for name in experts], [1.0, 2.0, 3.0])
    equal(read(out), want)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"


def test_slerp_of_a_slice(models, write_recipe, tmp_path):
    base, expert, *_ = models
    sources = [{"model": name, "layer_range": [0, 3]} for name in (expert, base)]
    recipe = write_recipe(merge_method="slerp", base_model=base, slices=[{"sources": sources, "parameters": {"t": 0.25}}])
    equal(weights(merge_models(recipe, tmp_path / "out")), slerp(weights(base), [weights(base), weights(expert)], 0.25))


@pytest.mark.parametrize(("key", "value"), [("rope_theta", 12345.0), ("rms_norm_eps", 0.125)])
@pytest.mark.parametrize("known", [True, False])
def test_settings_that_no_tensor_shows_get_a_warning(models, write_recipe, tmp_path, key, value, known):
    """As with mergekit the result has those of the first model."""
    folders = [str(shutil.copytree(model, tmp_path / Path(model).name)) for model in models[:3]]
    for folder, changes in zip(folders, [{}, {key: value}, {}], strict=True):
        file = Path(folder) / "config.json"
        kind = {} if known else {"model_type": "another"}
        file.write_text(json.dumps({**json.loads(file.read_text()), **kind, **changes}))
    base, *experts = folders
    recipe = write_recipe(
        merge_method="task_arithmetic", base_model=base, models=[{"model": x} for x in experts], parameters={"weight": 1}
    )
    lines: list[str] = []
    merge_models(recipe, tmp_path / "out", log=lines.append)
    (line,) = lines
    assert line.startswith(f"warning: expected {key} ")
    assert f" of {base}, which the result has, got {value} in {experts[0]}; check" in line
    result, ours = (json.loads((Path(folder) / "config.json").read_text()) for folder in (tmp_path / "out", base))
    assert result[key] == ours[key]


@pytest.mark.exhaustive
def test_dare_depends_on_the_seed(models, write_recipe, tmp_path):
    base, *experts = models
    recipe = write_recipe(
        merge_method="dare_ties", base_model=base, models=[{"model": name} for name in experts],
        parameters={"weight": 1, "density": 0.5},
    )  # fmt: skip
    found = [weights(merge_models(recipe, tmp_path / str(i), seed=seed)) for i, seed in enumerate((0, 0, 1))]
    equal(found[0], found[1], 0)
    assert any(not np.array_equal(found[0][name], found[2][name]) for name in found[0])


def test_precedence(models, write_recipe):
    """A model's own value comes first, then the slice's, then the config's; a filter that fits nothing goes on."""
    base, a, b, _ = models
    spans = {"layer_range": [0, 3]}
    recipe = load_recipe(
        write_recipe(
            merge_method="ties", base_model=base, parameters={"weight": 0.1, "density": 0.9, "lambda": [0, 1]},
            slices=[
                {
                    "parameters": {"weight": [{"filter": "norm", "value": 0.2}], "density": 0.8},
                    "sources": [
                        {"model": base, **spans},
                        {"model": a, **spans, "parameters": {"weight": {"filter": "mlp", "value": [3, 5]}}},
                        {"model": b, **spans},
                    ],
                }
            ],
        )
    )  # fmt: skip
    first, second = recipe.models
    assert recipe.value("weight", "model.layers.1.mlp.up_proj.weight", 0.5, first) == 4
    assert recipe.value("weight", "model.layers.1.input_layernorm.weight", 0.5, first) == 0.2
    assert recipe.value("weight", "model.layers.1.mlp.up_proj.weight", 0.5, second) == 0.1
    assert recipe.value("density", "x", 0, second) == 0.8
    assert recipe.value("lambda", "x", 0.25) == 0.25


def test_settings():
    gradient = parse_setting([0, 0.5, 0.3, 0.7, 1], "t")
    assert [gradient.at("x", place) for place in (0, 0.25, 0.5, 1)] == [0, 0.5, 0.3, 1]
    assert gradient.at("x", 0.125) == 0.25
    truths = parse_setting([True, False], "normalize", truth=True)
    assert [truths.at("x", place) for place in (0, 0.9, 1)] == [1, 1, 0]
    assert parse_setting(1.0, "normalize", truth=True) == parse_setting(True, "normalize", truth=True)
    assert parse_setting([{"filter": "mlp", "value": 1}], "weight").at("attn", 0) is None
    assert parse_setting([{"filter": "*", "value": "1e-1"}], "weight").at("attn", 0) == 0.1


def test_card_names_repositories_only(tmp_path, write_recipe):
    recipe = load_recipe(
        write_recipe(merge_method="slerp", base_model="a/b@main", models=[{"model": "c/d"}], parameters={"t": 0.5})
    )
    meta = yaml.safe_load(merge_card(recipe, "x", ["a/b@main", "c/d", str(tmp_path)]).split("---")[1])
    assert meta["base_model"] == ["a/b", "c/d"]
    assert repository_name("c/d..e") is None


def test_a_full_disk_leaves_nothing(models, write_recipe, tmp_path, monkeypatch, capsys):
    base, *experts = models
    recipe = write_recipe(
        merge_method="task_arithmetic",
        base_model=base,
        models=[{"model": name} for name in experts],
        parameters={"weight": 0.4},
    )

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    monkeypatch.setattr("cycleqd_jax.merging.write.write_shards", full)
    assert main(["merge", str(recipe), str(tmp_path / "out")]) == 2
    assert "cycleqd: expected to read and write files, got No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [recipe.name]


def test_overflow_is_refused(models, write_recipe, tmp_path, capsys):
    base, expert, *_ = models
    recipe = write_recipe(
        merge_method="task_arithmetic", base_model=base, models=[{"model": expert}], parameters={"weight": 1e9}, dtype="float16"
    )
    assert main(["merge", str(recipe), str(tmp_path / "out")]) == 2
    assert "as float16; choose another dtype" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tied_heads(models, tmp_path, write_recipe):
    """A model that stores its tied head, and one that has none, are merged; an untied head beside a tied one is refused."""
    from safetensors.numpy import save_file

    base, expert, *_ = models
    stored = tmp_path / "stored"
    stored.mkdir()
    for path in Path(expert).iterdir():
        (stored / path.name).write_bytes(path.read_bytes())
    tensors = load_file(stored / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, stored / "model.safetensors")
    recipe = write_recipe(merge_method="linear", models=[{"model": base}, {"model": str(stored)}], parameters={"weight": 1})
    equal(weights(merge_models(recipe, tmp_path / "out")), linear([weights(base), weights(expert)]))
    assert dict(tree_paths(weights(tmp_path / "out"))).keys() == weights(base).keys()
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, stored / "model.safetensors")
    assert main(["merge", str(recipe), str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


NAMES = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "merged by PEFT": lambda name: f"base_model.model.{name}",
    "without model": lambda name: name.removeprefix("model."),
    "one name of a shared tensor": lambda name: name.replace("model.embed_tokens", "lm_head"),
    "an equal head": lambda name: name,
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("first", [True, False])
def test_the_result_has_the_names_of_transformers(models, tmp_path, write_recipe, kind, first):
    from safetensors.numpy import save_file

    base, expert, *_ = models
    other = tmp_path / "other"
    shutil.copytree(expert, other)
    tensors = {NAMES[kind](name): tensor for name, tensor in load_file(other / "model.safetensors").items()}
    if kind == "an equal head":
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    save_file(tensors, other / "model.safetensors")
    names = [str(other), base] if first else [base, str(other)]
    recipe = write_recipe(merge_method="linear", models=[{"model": name} for name in names], parameters={"weight": 1})
    merge_models(recipe, tmp_path / "out")
    known = set(load_file(Path(base) / "model.safetensors"))
    known |= {"lm_head.weight"} if kind == "an equal head" and first else set()
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == known
    if "lm_head.weight" not in known:
        equal(weights(tmp_path / "out"), linear([weights(base), weights(expert)]))


def small_files(folder, changes, names):
    """A copy of a model with other settings and more files."""
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    for name, text in names.items():
        (folder / name).write_text(text)


def test_what_the_users_of_a_base_need_is_copied(models, write_recipe, tmp_path):
    base, expert = (shutil.copytree(model, tmp_path / Path(model).name) for model in models[:2])
    code = {
        "modeling_x.py": "from .helper import nothing\n",
        "helper.py": "import os\n",
        "processing_x.py": "",
        "unrelated.py": "raise SystemExit\n",
    }
    more = {"vocab.txt": "a", "spiece.model": "b", "sentencepiece.bpe.model": "c", "preprocessor_config.json": "{}"}
    more["processor_config.json"] = json.dumps({"auto_map": {"AutoProcessor": ["processing_x.X", None]}})
    small_files(base, {"auto_map": {"AutoModel": "modeling_x.X", "AutoConfig": "owner/other--configuration_y.Y"}}, more | code)
    recipe = write_recipe(
        merge_method="linear", models=[{"model": str(base)}, {"model": str(expert)}], parameters={"weight": 1}
    )
    lines: list[str] = []
    for _ in range(2):  # a result with code can be replaced
        merge_models(recipe, tmp_path / "out", log=lines.append)
    assert lines == []
    for name in [*more, *code]:
        copied = tmp_path / "out" / name
        assert copied.exists() == (name != "unrelated.py"), name
        assert not copied.exists() or copied.read_text() == (base / name).read_text()
    assert "auto_map" in json.loads((tmp_path / "out" / "config.json").read_text())
    (base / "helper.py").unlink()
    merge_models(recipe, tmp_path / "out", log=lines.append)
    assert lines == [
        f"warning: expected the code helper.py that config.json of {base} names, got none; the result has no auto_map"
    ]
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert not (tmp_path / "out" / "modeling_x.py").exists()


def test_every_dtype_of_the_config_is_that_of_the_result(models, write_recipe, tmp_path):
    base, expert = (shutil.copytree(model, tmp_path / Path(model).name) for model in models[:2])
    text = {"torch_dtype": "float32", "hidden_size": 32}
    small_files(base, {"model_type": "x", "dtype": "float32", "torch_dtype": "float32", "text_config": text}, {})
    small_files(expert, {"model_type": "x"}, {})
    recipe = write_recipe(
        merge_method="linear",
        models=[{"model": str(base)}, {"model": str(expert)}],
        parameters={"weight": 1},
        dtype="bfloat16",
    )
    merge_models(recipe, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert config["text_config"] == {"torch_dtype": "bfloat16", "hidden_size": 32}
