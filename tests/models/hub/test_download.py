"""Models from a hub, against a real server on this machine, in separate processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cycleqd_jax.models.files import hub
from cycleqd_jax.types import InputError

from .traffic import FIRST, INDEX, JUNK, large, touched


@pytest.mark.parametrize("layout", ["base", "sharded"])
def test_a_model_is_judged_by_its_headers(server, publish, online, models, layout):
    publish(f"headers/{layout}", layout)
    with server.watched() as log:
        found = online("facts", f"headers/{layout}")
    want = online("facts", str(models / layout))
    assert found == want | {"name": f"headers/{layout}", "config": found["config"]}
    assert set(large(log)) == {path.name for path in (models / layout).glob("*.safetensors")}
    assert max(large(log).values()) <= FIRST
    assert not touched(log) & set(JUNK)
    assert sum(path.stat().st_size for path in (models / layout).glob("*.safetensors")) > 10 * FIRST


def test_a_run_is_judged_by_headers(server, publish, online):
    publish("run/base")
    publish("run/expert", "sharded")
    publish("run/lora", "lora")
    with server.watched() as log:
        assert online("check", "run/base", ["run/expert", "run/lora"]) == ["run/base", "run/expert", "adapter"]
    sent = large(log)
    sent.pop("adapter_model.safetensors")  # adapters are small
    assert len(sent) > 2
    assert max(sent.values()) <= FIRST
    assert not touched(log) & set(JUNK)
    # what has been seen is not fetched again, but for the headers
    with server.watched() as log:
        online("check", "run/base", ["run/expert", "run/lora"])
    assert touched(log) == set(sent)


@pytest.mark.parametrize(
    ("folder", "named"),
    [
        ("wider", "intermediate_size 512.*520"),
        ("padded", "vocab_size"),
        ("bf16", "dtype 'float32'.*'bfloat16'"),
        ("stranger", "<.eot_id.>"),
    ],
)
def test_strangers_are_refused_before_their_weights_are_fetched(server, publish, online, folder, named):
    publish("judge/base")
    publish(f"judge/{folder}", folder)
    with server.watched() as log, pytest.raises(InputError, match=named):
        online("check", "judge/base", [f"judge/{folder}"])
    assert sum(large(log).values()) <= 2 * FIRST


@pytest.mark.parametrize("layout", ["base", "sharded"])
def test_a_model_is_downloaded_once_bit_for_bit(server, publish, online, models, layout):
    publish(f"whole/{layout}", layout)
    files = {path.name for path in (models / layout).iterdir()} - {"README.md"}
    with server.watched() as log:
        assert online("same", f"whole/{layout}", str(models / layout))
    for name, sent in large(log).items():
        assert sent <= (models / layout / name).stat().st_size + FIRST
    assert touched(log) <= files | {"model.safetensors"}  # which is asked for before shards
    assert {(request.store, request.token) for request in log} == {(False, True), (True, False)}  # it is for the hub alone
    with server.watched() as log:
        assert online("same", f"whole/{layout}", str(models / layout))
    assert touched(log) == set()
    where, names, digest = online("folder", f"whole/{layout}")
    assert set(names) == files
    assert digest == online("folder", str(models / layout))[2]
    # what other programs add to the cache does not make it another model
    (Path(where) / "consolidated.safetensors").write_bytes(b"x")
    (Path(where) / "processor_config.json").write_text("{}")
    assert online("folder", f"whole/{layout}")[2] == digest


def test_revisions(server, publish, online, models):
    repository = publish("versions/model", "expert")
    old = repository.push({path.name: path.read_bytes() for path in (models / "base").iterdir()}, "v1.0", "refs/pr/2")
    publish("versions/other", "expert")
    repository.revisions["main"] = server.repositories["versions/other"].revisions["main"]
    repository.revisions[repository.revisions["main"][0]] = repository.revisions["main"]
    for name in ("versions/model@v1.0", "versions/model@refs/pr/2", f"versions/model@{old}"):
        assert online("same", name, str(models / "base"))
    assert online("same", "versions/model", str(models / "expert"))
    with pytest.raises(InputError, match=r"revision of the repository versions/model, got v2.0, which does not exist"):
        online("load", "versions/model@v2.0")


def resolutions(log):
    return [request.path.split("/")[4] for request in log if "/revision/" in request.path]


def test_a_branch_that_moves_meanwhile(server, publish, online, models):
    """What was checked is what is loaded: a process stays with the commit that it resolved first."""
    repository = publish("moving/model")
    publish("moving/lora", "lora")
    with server.watched() as log:
        assert online("check", "moving/model", ["moving/model@main", "moving/lora"])[0] == "moving/model"
        repository.push({path.name: path.read_bytes() for path in (models / "expert").iterdir()})
        assert online("tokens", "moving/model") > 0
        assert online("folder", "moving/model") == online("folder", "moving/model@main")
        assert online("same", "moving/model", str(models / "base"))
        assert online("same", "moving/model@main", str(models / "base"))
        assert online("same_adapter", "moving/lora", str(models / "lora"), "moving/model")
    assert resolutions(log) == ["model", "lora"]
    online("forget")
    with server.watched() as log:
        assert online("same", "moving/model", str(models / "expert"))
    assert resolutions(log) == ["model"]


def test_a_commit_is_kept_when_the_network_goes(server, publish, online, models):
    repository = publish("gone/model")
    online("load", "gone/model")
    repository.status = 500
    assert online("same", "gone/model", str(models / "base"))


def test_what_could_not_be_resolved_is_tried_again(server, publish, online, models):
    repository = publish("flaky/model", status=500)
    with pytest.raises(InputError, match=r"flaky/model.*500"):
        online("load", "flaky/model")
    repository.status = 200
    assert online("same", "flaky/model", str(models / "base"))


def test_one_file_is_preferred_to_shards(server, publish, online, models):
    """As by transformers, and as in a local folder that has both."""
    index = (models / "sharded" / INDEX).read_bytes()
    publish("both/model", change=lambda files: files.update({INDEX: index}))
    with server.watched() as log:
        assert online("same", "both/model", str(models / "base"))
    assert set(large(log)) == {"model.safetensors"}


def test_a_repository_that_was_renamed(server, publish, online, models):
    publish("renamed/new")
    publish("renamed/old", moved_to="renamed/new")
    assert online("same", "renamed/old", str(models / "base"))


def test_an_adapter(server, publish, online, models):
    publish("lora/base")
    publish("lora/adapter", "lora")
    adapter = str(models / "lora")
    with server.watched() as log:
        assert online("same_adapter", "lora/adapter", adapter, "lora/base")
    assert set(large(log)) == {"adapter_model.safetensors", "model.safetensors"}
    assert large(log)["model.safetensors"] <= FIRST
    with pytest.raises(InputError, match="got a LoRA adapter in lora/adapter"):
        online("load", "lora/adapter")


def with_long_header(files):
    content = files["model.safetensors"]
    stop = 8 + int.from_bytes(content[:8], "little")
    header = content[8:stop] + b" " * 80_000
    files["model.safetensors"] = len(header).to_bytes(8, "little") + header + content[stop:]


@pytest.mark.parametrize(
    ("name", "change", "how"), [("header/long", with_long_header, {}), ("header/whole", None, {"ranges": False})]
)
def test_unusual_headers(server, publish, online, models, name, change, how):
    publish(name, change=change, **how)
    want = online("facts", str(models / "base"))
    assert online("facts", name)["tensors"] == want["tensors"]


@pytest.mark.parametrize("name", ["owner/name", "meta-llama/Llama-3.1-8B", "a/b@v1.0", "a/b@refs/pr/1", "_a/b_c"])
def test_names_of_repositories(name):
    assert hub.is_repository(name)


@pytest.mark.parametrize(
    "name", ["gpt2", "/a/b", "./a/b", "../a", "a/b/c", "a/b@", "~/a", "a/..", "ä/b", "a/b c", "", "a/", Path("a/b")]
)
def test_other_names(name):
    assert not hub.is_repository(name)


def test_templates_beside_the_default_one_are_downloaded(publish, online):
    publish("templates/one")
    publish("templates/two", change=lambda files: files.update({"additional_chat_templates/rag.jinja": b"{{ documents }}"}))
    (_, without, one), (_, names, two) = online("folder", "templates/one"), online("folder", "templates/two")
    assert set(names) - set(without) == {"additional_chat_templates"}
    assert one != two
