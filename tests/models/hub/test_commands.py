"""Commands on models of the hub."""

from __future__ import annotations

import json

import pytest

from .traffic import FIRST, INDEX, large


@pytest.mark.exhaustive
def test_inspect(server, publish, online, models):
    publish("command/model", "sharded")
    with server.watched() as log:
        code, shown, _ = online("cli", "inspect", "command/model", "--json")
    assert code == 0
    assert max(large(log).values()) <= FIRST
    facts = json.loads(shown)
    assert facts["model"] == "command/model"
    assert facts["bytes"] == sum(json.loads((models / "sharded" / INDEX).read_bytes())["metadata"].values())
    assert set(facts["files"]) == {f"command/model/{path.name}" for path in (models / "sharded").glob("*.safetensors")}
    assert "stop_tokens" in facts["tokenizer"]


@pytest.mark.exhaustive
def test_inspect_against_a_base(server, publish, online, models):
    for name in ("base", "expert", "lora"):
        publish(f"distance/{name}", name)
    found = json.loads(online("cli", "inspect", "distance/expert", "--base", "distance/base", "--json")[1])["task_vector"]
    assert found["base"] == "distance/base"
    assert found["all"]["relative"] == pytest.approx(0.01, rel=1e-4)
    code, shown, _ = online("cli", "inspect", "distance/lora", "--base", "distance/base")
    assert code == 0
    assert "rank 4" in shown


@pytest.mark.exhaustive
def test_generate(server, publish, online):
    publish("answer/model")
    publish("answer/bare", change=lambda files: files.pop("tokenizer_config.json"))
    code, shown, _ = online("cli", "generate", "answer/model", "hi", "--max-new-tokens", "2")
    assert code == 0
    assert shown.endswith("\n")
    with server.watched() as log:
        code, _, message = online("cli", "generate", "answer/bare", "hi")
    assert code == 2
    assert "tokenizer" in message
    assert large(log) == {"model.safetensors": FIRST}  # the header
    publish("answer/lora", "lora")
    code, _, message = online("cli", "generate", "answer/lora", "hi")
    assert code == 2
    assert "got a LoRA adapter in answer/lora" in message


def test_merge(server, publish, online, tmp_path):
    """Models are compared by their headers, then downloaded and merged; the card names their repositories."""
    for name in ("base", "expert", "sharded"):
        publish(f"merge/{name}", name)
    config = tmp_path / "merge.yml"
    config.write_text(
        "merge_method: linear\nmodels: [{model: merge/base}, {model: merge/expert@main}]\nparameters: {weight: 1}\n"
    )
    code, _, _ = online("cli", "merge", str(config), str(tmp_path / "out"))
    assert code == 0
    assert "base_model:\n- merge/base\n- merge/expert\n" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()
    config.write_text(config.read_text().replace("weight: 1", "weight: 0"))
    with server.watched() as log:
        code, _, error = online("cli", "merge", str(config), str(tmp_path / "other"))
    assert code == 2
    assert "other than zero" in error
    assert not large(log)
