"""Models from a hub, against a real server on this machine, in programs of their own."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from cycleqd_jax.models import llama
from cycleqd_jax.models.files import hf, hub
from cycleqd_jax.types import InputError

from .hub_server import Hub

FIRST = 1 << 15  # bytes of a file that are fetched for its header
INDEX = "model.safetensors.index.json"
JUNK = {
    "README.md": b"# A model\n",
    "original/consolidated.00.pth": bytes(10_000),
    "original/params.json": b"{}",
    "consolidated.safetensors": bytes(10_000),
    "pytorch_model.bin": bytes(10_000),
    "params.json": b"{}",
    "onnx/model.safetensors": bytes(100),
    ".gitattributes": b"",
}


class Worker:
    """A program that calls a function of ``hub_worker.py`` for us."""

    def __init__(self, home: Path, **settings: str) -> None:
        unset = ("HF_", "TRANSFORMERS_", "XLA_FLAGS")
        env = {key: value for key, value in os.environ.items() if not key.startswith(unset) and "proxy" not in key.lower()}
        env |= {"HF_HOME": str(home), "HF_TOKEN": "hf_secret", "JAX_PLATFORMS": "cpu", **settings}
        home.mkdir(parents=True, exist_ok=True)
        self.env, self.seconds = env, 0.0
        command = [sys.executable, str(Path(__file__).parent / "hub_worker.py")]
        self._stderr = (home / f"stderr-{id(self)}").open("w")
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, text=True
        )

    def __call__(self, function: str, *args):
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([function, *args]), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        self.seconds = answer["seconds"]
        if "refused" in answer:
            assert "\n" not in answer["refused"]
            raise InputError(answer["refused"])
        assert "broken" not in answer, answer["broken"]
        return answer["result"]

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._stderr.close()


@pytest.fixture(scope="module")
def server():
    made = Hub()
    yield made
    made.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def workers(server, home):
    """Programs that are online, in offline mode, and without a network: started together, as that takes seconds."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{unused.getsockname()[1]}"
    made = {
        "online": Worker(home, HF_ENDPOINT=server.endpoint),
        "offline": Worker(home, HF_ENDPOINT=nobody, HF_HUB_OFFLINE="1"),
        "unplugged": Worker(home, HF_ENDPOINT=nobody),
    }
    yield made
    for worker in made.values():
        worker.close()


@pytest.fixture
def online(workers):
    return workers["online"]


@pytest.fixture(scope="module")
def models(workers, tmp_path_factory, make_config, tokenizer):
    """Model folders; weights are much more than their headers."""
    root = tmp_path_factory.mktemp("models")
    config = make_config(vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=512, max_position_embeddings=256)
    random = np.random.default_rng(0)

    def weights(config):
        return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), llama.abstract_params(config))

    params = weights(config)
    tuned = jax.tree.map(lambda leaf: leaf * np.float32(1.01), params)
    hf.save(root / "base", config, params, tokenizer=tokenizer)
    hf.save(root / "sharded", config, params, tokenizer=tokenizer, max_shard_bytes=500_000)
    hf.save(root / "expert", config, tuned, tokenizer=tokenizer)
    hf.save(root / "bf16", config, tuned, dtype="bfloat16", tokenizer=tokenizer)
    wider = config.replace(intermediate_size=520)
    hf.save(root / "wider", wider, weights(wider), tokenizer=tokenizer)
    padded = config.replace(vocab_size=config.vocab_size + 8)
    hf.save(root / "padded", padded, weights(padded), tokenizer=tokenizer)
    shutil.copytree(root / "expert", root / "stranger")
    vocabulary = (root / "stranger" / "tokenizer.json").read_text(encoding="utf-8")
    (root / "stranger" / "tokenizer.json").write_text(vocabulary.replace("<|eot_id|>", "<|im_end|>"), encoding="utf-8")

    (root / "lora").mkdir()
    options = {
        "peft_type": "LORA",
        "base_model_name_or_path": "acme/base",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj"],
    }
    (root / "lora" / "adapter_config.json").write_text(json.dumps(options), encoding="utf-8")
    tensors = {}
    for layer in range(config.num_hidden_layers):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors[f"{prefix}A.weight"] = random.normal(size=(4, 64)).astype(np.float32)
        tensors[f"{prefix}B.weight"] = random.normal(size=(32, 4)).astype(np.float32)
    save_file(tensors, root / "lora" / "adapter_model.safetensors")
    return root


@pytest.fixture
def publish(server, models):
    """``publish(name, folder="base", change=None, **how)``: a repository of a folder's files, with junk beside."""

    def add(name, folder="base", change=None, **how):
        files = JUNK | {path.name: path.read_bytes() for path in (models / folder).iterdir()}
        if change is not None:
            change(files)
        return server.add(name, files, **how)

    return add


def large(log):
    """Weights that were sent: bytes by file."""
    sent = {}
    for request in log:
        if request.file and request.sent and request.file.endswith((".safetensors", ".bin", ".pth")):
            sent[request.file] = sent.get(request.file, 0) + request.sent
    return sent


def touched(log):
    """Files that were asked for."""
    return {request.file for request in log if request.file is not None}


def rewrite_index(files, change):
    index = json.loads(files[INDEX])
    change(index["weight_map"])
    files[INDEX] = json.dumps(index).encode()


Q = "model.layers.1.self_attn.q_proj.weight"


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
    with pytest.raises(InputError, match=r"versions/model has no revision v2.0"):
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


# --------------------------------------------------------------------------------------------------------------------
# Without the hub


def test_offline_mode_uses_the_cache(server, publish, workers, models):
    publish("cached/base")
    publish("cached/sharded", "sharded")
    publish("cached/lora", "lora")
    publish("cached/headers")
    for name in ("cached/base", "cached/sharded"):
        workers["online"]("load", name)
    workers["online"]("check", "cached/base", ["cached/lora"])
    workers["online"]("facts", "cached/headers")
    with server.watched() as log:
        for worker in (workers["offline"], workers["unplugged"]):
            assert worker("same", "cached/base", str(models / "base"))
            assert worker("check", "cached/base", ["cached/sharded", "cached/lora"])[1:] == ["cached/sharded", "adapter"]
            assert worker("same_adapter", "cached/lora", str(models / "lora"), "cached/base")
            for name in ("cached/absent", "cached/base@v9", "cached/headers"):
                with pytest.raises(InputError, match=f"{name}.*(go online|can be reached)") as refused:
                    worker("load", name)
                assert ("offline mode" in str(refused.value)) == (worker is workers["offline"])
                assert worker.seconds < 1
    assert not log


def test_offline_too_a_branch_stays_where_it_is(publish, workers, models):
    repository = publish("steady/model")
    workers["online"]("load", "steady/model")
    assert workers["offline"]("facts", "steady/model")["nbytes"] > 0
    repository.push({path.name: path.read_bytes() for path in (models / "expert").iterdir()})
    workers["online"]("forget")
    workers["online"]("load", "steady/model")  # the cache, which all share, has the new commit now
    assert workers["offline"]("same", "steady/model", str(models / "base"))
    workers["offline"]("forget")
    assert workers["offline"]("same", "steady/model", str(models / "expert"))


def test_a_cache_that_another_program_filled(publish, workers, models, home):
    """Without huggingface_hub's note of what the repository has; and with less than the whole."""
    publish("foreign/model", "sharded")
    workers["online"]("load", "foreign/model")
    shutil.rmtree(home / "hub" / "models--foreign--model" / "trees", ignore_errors=True)
    assert workers["offline"]("same", "foreign/model", str(models / "base"))
    where = Path(workers["offline"]("folder", "foreign/model")[0])
    next(where.glob("*-of-*.safetensors")).unlink()
    with pytest.raises(InputError, match=r"foreign/model.*go online"):
        workers["offline"]("load", "foreign/model")
    assert workers["online"]("same", "foreign/model", str(models / "base"))


# --------------------------------------------------------------------------------------------------------------------
# Bad input


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
    "gated": ({"gated": True}, "base", None, "refused/gated is gated.*terms.*hf auth login"),
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
    with pytest.raises(InputError, match=r"no folder nobody/nothing.*no repository nobody/nothing"):
        online("load", "nobody/nothing")
    with pytest.raises(InputError, match=r"no folder nobody/not--allowed.*no name"):
        online("load", "nobody/not--allowed")
    with pytest.raises(InputError, match=r"which is none.*no such folder"):
        online("load", "runs/quikstart/model")


def test_a_path_that_is_mistyped(workers):
    for worker in workers.values():
        code, _, message = worker("cli", "inspect", "runs/model")
        assert code == 2
        assert message.startswith("cycleqd: there is no folder runs/model")
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
    with pytest.raises(InputError, match="fragile/model can't be read"):
        online("load_impatiently", "fragile/model")
    assert not list((home / "hub" / "models--fragile--model").glob("snapshots/*/*.safetensors"))
    repository.cut = None
    assert online("same", "fragile/model", str(models / "base"))


def test_a_download_that_was_garbled(server, publish, online):
    publish("garbled/model", garbled=True)
    for _ in range(2):
        with pytest.raises(InputError, match=r"model.safetensors.*hf cache rm model/garbled/model"):
            online("load", "garbled/model")


# --------------------------------------------------------------------------------------------------------------------
# Commands


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


def test_inspect_against_a_base(server, publish, online, models):
    for name in ("base", "expert", "lora"):
        publish(f"distance/{name}", name)
    found = json.loads(online("cli", "inspect", "distance/expert", "--base", "distance/base", "--json")[1])["task_vector"]
    assert found["base"] == "distance/base"
    assert found["all"]["relative"] == pytest.approx(0.01, rel=1e-4)
    code, shown, _ = online("cli", "inspect", "distance/lora", "--base", "distance/base")
    assert code == 0
    assert "rank 4" in shown


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


@pytest.mark.parametrize("name", ["owner/name", "meta-llama/Llama-3.1-8B", "a/b@v1.0", "a/b@refs/pr/1", "_a/b_c"])
def test_names_of_repositories(name):
    assert hub.is_repository(name)


@pytest.mark.parametrize(
    "name", ["gpt2", "/a/b", "./a/b", "../a", "a/b/c", "a/b@", "~/a", "a/..", "ä/b", "a/b c", "", "a/", Path("a/b")]
)
def test_other_names(name):
    assert not hub.is_repository(name)
