"""Repositories that can't be used, downloads that fail, and paths that are mistyped."""

from __future__ import annotations

import json
import re

import pytest

from cycleqd_jax.types import InputError

from .traffic import FIRST, INDEX, large, rewrite_index

Q = "model.layers.1.self_attn.q_proj.weight"


def only(*names):
    def change(files):
        for name in set(files) - set(names):
            del files[name]

    return change


def shard_of(files):
    return json.loads(files[INDEX])["weight_map"][Q]


def reshape(files):
    files["config.json"] = files["config.json"].replace(b'"intermediate_size": 512', b'"intermediate_size": 513')


REFUSED = {
    "gated": ({"gated": True}, "base", None, "access to the repository refused/gated, got a gated.*terms.*hf auth login"),
    "server": ({"status": 500}, "base", None, "refused/server.*500"),
    "busy": ({"large_status": 503}, "base", None, "refused/busy.*503"),
    "pickled": (
        {},
        "base",
        only("config.json", "pytorch_model.bin"),
        "model.safetensors in the repository refused/pickled.*code",
    ),
    "gguf": ({}, "base", only("README.md"), "no config.json in refused/gguf"),
    "kind": (
        {},
        "base",
        lambda f: f.update({"config.json": b'{"model_type": "gpt2"}'}),
        "model_type.*refused/kind/config.json.*gpt2",
    ),
    "shape": ({}, "base", reshape, "shape.*513.*refused/shape/model.safetensors.*512"),
    "evil": ({}, "sharded", lambda f: rewrite_index(f, lambda m: m.update({Q: "../evil.safetensors"})), "plain file.*evil"),
    "pattern": ({}, "sharded", lambda f: rewrite_index(f, lambda m: m.update({Q: "*.safetensors"})), f"{Q}.*no such file"),
    "absent": ({}, "sharded", lambda f: f.pop(shard_of(f)), "model-0.*refused/absent.*no such file"),
    "names": ({}, "sharded", lambda f: rewrite_index(f, lambda m: m.update(x=m[Q])), "tensor x .*no such tensor"),
    "cut": ({}, "base", lambda f: f.update({"model.safetensors": f["model.safetensors"][:-4]}), "whole safe.*cut/model.safe"),
    "empty": ({}, "base", lambda f: f.update({"model.safetensors": b""}), "refused/empty"),
    "header": ({}, "base", lambda f: f.update({"model.safetensors": b"\x04" + bytes(7) + b"[[[["}), "unreadable header"),
    "lora": ({}, "lora", lambda f: f.pop("adapter_model.safetensors"), "got a LoRA adapter in refused/lora"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_unusable_repositories_are_refused_by_their_headers(server, publish, online, home, name):
    how, folder, change, named = REFUSED[name]
    publish(f"refused/{name}", folder, change, **how)
    with server.watched() as log, pytest.raises(InputError, match=named):
        online("load", f"refused/{name}")
    assert all(sent <= FIRST for sent in large(log).values())
    assert not any("evil.safetensors" in request.path for request in log)
    assert online.seconds < 3
    assert not list((home / "hub" / f"models--refused--{name}").glob("snapshots/*/*.safetensors"))


def test_what_there_is_not(online):
    with pytest.raises(InputError, match=r"a folder or a repository of the hub, got nobody/nothing, which is neither"):
        online("load", "nobody/nothing")
    with pytest.raises(InputError, match=r"a folder or the name of a repository, got nobody/not--allowed \("):
        online("load", "nobody/not--allowed")
    with pytest.raises(InputError, match=r"got no such folder: runs/quikstart/model"):
        online("load", "runs/quikstart/model")


MISTYPED = r"cycleqd: expected (the folder runs/model, or that repo|a folder or a repo.*, got runs/model, which is neither)"


def test_a_path_that_is_mistyped(workers):
    for worker in workers.values():
        code, _, message = worker("cli", "inspect", "runs/model")
        assert code == 2
        assert re.match(MISTYPED, message)
        assert worker.seconds < 1


def test_an_adapter_without_safetensors(server, publish, online):
    publish("pickled/base")
    publish("pickled/lora", "lora", lambda files: files.update({"adapter_model.bin": files.pop("adapter_model.safetensors")}))
    with pytest.raises(InputError, match=r"adapter_model.safetensors in the repository pickled/lora"):
        online("check", "pickled/base", ["pickled/lora"])


def test_a_disk_that_is_full(server, publish, online):
    publish("large/model")
    with server.watched() as log, pytest.raises(InputError, match=r"0\.00\d+ GB of space.*large/model.*HF_HOME"):
        online("load_on_a_full_disk", "large/model")
    assert sum(large(log).values()) <= FIRST


def test_a_download_that_breaks_off_is_taken_up_again(server, publish, online, models, home):
    repository = publish("fragile/model", cut=700_000)
    with pytest.raises(InputError, match="expected to read the repository fragile/model from the hub, got"):
        online("load_impatiently", "fragile/model")
    assert not list((home / "hub" / "models--fragile--model").glob("snapshots/*/*.safetensors"))
    repository.cut = None
    assert online("same", "fragile/model", str(models / "base"))


def test_a_download_that_was_garbled(server, publish, online):
    publish("garbled/model", garbled=True)
    for _ in range(2):
        with pytest.raises(InputError, match=r"model.safetensors.*hf cache rm model/garbled/model"):
            online("load", "garbled/model")
