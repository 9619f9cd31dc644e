from __future__ import annotations

import sys

import jax
import numpy as np
import pytest

from cycleqd_jax.models import llama
from cycleqd_jax.types import Reply

from ..script import load_script

CONFIG = llama.LlamaConfig(48, 32, 64, 2, 4, 2, 8, max_position_embeddings=300, initializer_range=0.4)


@pytest.fixture(scope="module")
def bench():
    return load_script("bench_engine")


@pytest.mark.exhaustive
def test_the_check_finds_differences_from_greedy_decoding(bench):
    params = llama.init_params(CONFIG, jax.random.key(1))
    engine = bench.Recorder(CONFIG, slots=4, max_len=64, stop_ids=(3, 5), pad_id=0)
    engine.load(params)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(6, 48, rng.integers(1, 40)).tolist() for _ in range(9)] + [[7] * 60, [7] * 64, [7] * 70]
    engine.generate(prompts, [12] * 12)
    found = engine.check(params)
    assert found == {"tokens": sum(map(len, engine.replies.values())), "not the argmax": [], "ends elsewhere": []}
    assert len(engine.replies[9]) <= 4  # ended by max_len
    assert engine.replies[10] == ()  # no room
    long = next(number for number, ids in engine.replies.items() if len(ids) == 12)
    stopped = next(number for number, ids in engine.replies.items() if ids and ids[-1] in (3, 5))
    engine.replies[long] = engine.replies[long][:-1]
    engine.replies[stopped] = (*engine.replies[stopped], 9)
    found = engine.check(params)
    assert found["ends elsewhere"] == sorted((long, stopped))
    assert {other["request"] for other in found["not the argmax"]} <= {stopped}
    engine.replies[long] = (*engine.replies[long][:2], (engine.replies[long][2] + 1) % 48, *engine.replies[long][3:])
    assert (long, 2) in {(other["request"], other["token"]) for other in engine.check(params)["not the argmax"]}
    assert all(other["gap"] > 0 for other in engine.check(params)["not the argmax"])


@pytest.mark.exhaustive
def test_a_tie_is_listed(bench):
    params = llama.init_params(CONFIG, jax.random.key(1))
    params["lm_head"] = params["lm_head"].at[:, 20:30].set(params["lm_head"][:, 30:40])
    engine = bench.Recorder(CONFIG, slots=4, max_len=64, stop_ids=(3,), pad_id=0)
    engine.load(params)
    engine.generate([[n] for n in range(8, 18)], [12] * 10)
    number, place = next((n, i) for n, ids in engine.replies.items() for i, token in enumerate(ids) if 20 <= token < 30)
    ids = list(engine.replies[number])
    engine.replies[number] = tuple([*ids[:place], ids[place] + 10])  # the same logit at a higher id
    others = engine.check(params)["not the argmax"]
    assert [(other["request"], other["token"], other["gap"]) for other in others] == [(number, place, 0.0)]


WORKER = """
import json, sys
print(json.dumps({"ready": "1.0"}), flush=True)
waiting = []
for line in sys.stdin:
    waiting += json.loads(line)
    if len(waiting) > 3:
        sys.exit(3)
    number, prompt, limit = waiting.pop()
    print(json.dumps([[number, [prompt[0]] * (limit - 1) + [5]]]), flush=True)
"""


class Words:
    """A tokenizer whose tokens are numbers."""

    stop_ids, pad_id = (5,), 0

    def encode(self, messages):
        return [int(messages[-1]["content"])]

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.fixture
def peer(tmp_path):
    """What ``--peer`` gets, of an environment whose interpreter speaks the protocol."""
    (tmp_path / "worker.py").write_text(WORKER)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/worker.py\n")
    python.chmod(0o755)
    (tmp_path / "model").mkdir()
    found = load_script("bench_generators").Peer(f"openvino:u8:{python}", str(tmp_path / "model"), Words(), 8)
    yield found
    found.close()


def test_replies_of_another_engine_find_their_conversations(peer):
    assert peer.name == "openvino:u8 1.0"
    for name, text in (("a", "7"), ("b", "8")):
        peer.submit(name, [{"role": "user", "content": text}], 3)
    assert peer.advance() == [("b", Reply("8 8", 3, "stop"))]
    peer.submit("c", [{"role": "user", "content": "9"}], 2)
    assert [peer.advance()[0][0] for _ in range(2)] == ["c", "a"]


def test_another_engine_that_ends_is_named(peer):
    for name in range(4):
        peer.submit(name, [{"role": "user", "content": "7"}], 3)
    with pytest.raises(RuntimeError, match="got exit code 3"):
        peer.advance()


def test_the_table_has_the_fastest_turn_of_every_engine(bench):
    row = {"workload": "mbpp", "who": "whole, float32", "seconds": 20.0, "tokens": 100, "prompt_tokens": 300}
    rows = [
        {"workload": "mbpp", "who": "openvino 1", "seconds": 10.0, "tokens": 101},
        row,
        {**row, "seconds": 16.0},
        {**row, "workload": "dbbench", "seconds": 1.0},
    ]
    table = bench.beside_peers(rows, "mbpp", {"float32_tokens_per_s": 50.0}).splitlines()
    assert table[2:] == [
        "| openvino 1 | 10.0 | 101 | 1.60 | 80% |",
        "| whole, float32 | 16.0 | 100 | 1.00 | 50% |",
    ]
