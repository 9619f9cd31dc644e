"""``cycleqd inspect``: the facts about a model, and its distance from its base."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from cycleqd_jax.cli import main
from cycleqd_jax.models import llama
from cycleqd_jax.models import tokenizer as chat
from cycleqd_jax.models.files import hf

TEXTS = ["What is the capital of France?", "Paris, of course. 1 + 1 = 2"] * 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    tokenizer = chat.train_tiny_tokenizer(TEXTS, 300)
    config = llama.LlamaConfig(tokenizer.vocab_size, 32, 48, 3, 4, 2, 8, max_position_embeddings=64)
    base = llama.init_params(config, jax.random.key(0))
    expert = {**base, "norm": base["norm"] * 1.25, "layers": dict(base["layers"])}
    expert["layers"]["mlp"] = {**base["layers"]["mlp"], "up": base["layers"]["mlp"]["up"].at[1].multiply(3.0)}
    hf.save(folder / "base", config, base, tokenizer=tokenizer)
    hf.save(folder / "expert", config, expert, tokenizer=tokenizer, max_shard_bytes=20_000)
    return folder, config, base, expert


def inspected(capsys, *args):
    capsys.readouterr()
    assert main(["inspect", *map(str, args), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.exhaustive
def test_facts_of_a_model(pair, capsys):
    folder, config, base, _ = pair
    facts = inspected(capsys, folder / "expert")
    assert facts["architecture"] == "LlamaForCausalLM"
    assert facts["parameters"] == llama.num_params(config) == sum(leaf.size for leaf in jax.tree.leaves(base))
    assert facts["bytes"] == 4 * facts["parameters"]
    assert facts["tokenizer"]["stop_tokens"] == {"<|end_of_text|>": 1, "<|eot_id|>": 4}
    assert facts["tensors"]["layers/attn/k"]["shape"] == [3, 16, 32]
    assert len(facts["files"]) > 2
    assert "task_vector" not in facts
    assert main(["inspect", str(folder / "expert")]) == 0
    shown = capsys.readouterr().out
    assert f"{facts['parameters']:,}" in shown
    assert "4 heads, 2 for keys and values" in shown


def test_the_norm_of_the_task_vector(pair, capsys):
    folder, _, base, expert = pair
    facts = inspected(capsys, folder / "expert", "--base", folder / "base")["task_vector"]
    tau = jax.tree.map(lambda a, b: np.asarray(a, np.float64) - np.asarray(b, np.float64), expert, base)
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(tau)))
    whole = np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(base)))
    assert facts["all"]["norm"] == pytest.approx(norm, rel=1e-5)
    assert facts["all"]["relative"] == pytest.approx(norm / whole, rel=1e-5)
    assert facts["by_kind"]["norm"]["relative"] == pytest.approx(0.25)
    changed = {path for path, figures in facts["by_kind"].items() if figures["norm"] > 0}
    assert changed == {"norm", "layers/mlp/up"}
    assert [layer for layer, figures in facts["by_layer"].items() if figures["norm"] > 0] == ["1"]
    up = np.linalg.norm(np.asarray(tau["layers"]["mlp"]["up"][1]))
    assert facts["by_layer"]["1"]["norm"] == pytest.approx(up, rel=1e-5)
    assert main(["inspect", str(folder / "expert"), "--base", str(folder / "base")]) == 0
    assert "layers/mlp/up" in capsys.readouterr().out
    assert inspected(capsys, folder / "base", "--base", folder / "base")["task_vector"]["all"]["norm"] == 0


def test_a_model_without_chat_template(pair, capsys, tmp_path):
    folder, *_ = pair
    shutil.copytree(folder / "base", tmp_path / "m")
    (tmp_path / "m" / "chat_template.jinja").unlink()
    assert "chat template" in inspected(capsys, tmp_path / "m")["tokenizer"]


def test_models_that_do_not_belong_together(pair, capsys, tmp_path):
    folder, config, *_ = pair
    small = config.replace(num_hidden_layers=2)
    hf.save(tmp_path / "small", small, llama.init_params(small, jax.random.key(1)))
    assert main(["inspect", str(tmp_path / "small"), "--base", str(folder / "base")]) == 2
    assert "model.layers.2." in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "none")]) == 2
    assert "none" in capsys.readouterr().err
