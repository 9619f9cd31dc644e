from __future__ import annotations

import jax
import numpy as np
import pytest

from cycleqd_jax.models import llama

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
