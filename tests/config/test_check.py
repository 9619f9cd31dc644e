"""Errors of a config name the key, the value and what to do."""

from __future__ import annotations

import dataclasses

import pytest

from cycleqd_jax.config import check_config, load_config
from cycleqd_jax.types import InputError

from .conftest import MINIMAL

CORRECT = "; correct the config"


def bounds(**of_tasks) -> dict:
    return {"search": {"bounds": {"mbpp": [0, 1], "dbbench": [0, 1], "os": [0, 1]} | of_tasks}}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"serch": {}}, "unknown key serch; did you mean search"),
        ({"zzz": 1}, f"one of the keys name, tasks, .*checkpoint, got the unknown key zzz{CORRECT}"),
        ({"search": {"alpha_lo": 0.1}}, "search.alpha_lo; did you mean search.alpha_low"),
        ({"finetune": {"warmup_fraction": 1.5}}, "unknown key finetune.warmup_fraction"),
        ({"mesh": {"tensors": 2}}, "unknown key mesh.tensors; did you mean mesh.tensor"),
        ({"tasks": [{"name": "a", "trian": "x"}, {"name": "b"}]}, r"tasks\.0\.trian; did you mean tasks\.0\.train"),
        ({"tasks": [{"kind": "mbpp"}, {"name": "b"}]}, r"expected the key tasks\.0\.name, got none in the config; add it"),
        ({"tasks": "mbpp"}, "expected tasks to be a list, got 'mbpp'"),
        ({"tasks": None}, "expected tasks to be a list, got None"),
        ({"tasks": [{"name": "a"}, "b"]}, r"expected tasks\.1 to be a mapping, got 'b'"),
        ({"checkpoint": []}, r"expected checkpoint to be a mapping, got \[\]"),
        ({"name": 5}, f"expected name to be of type str, got 5{CORRECT}"),
        ({"seed": 1.5}, "expected seed to be of type int, got 1.5"),
        ({"seed": True}, "expected seed to be of type int, got True"),
        ({"seed": "7"}, "expected seed to be of type int, got '7'"),
        ({"search": {"selection": "best"}}, "expected search.selection to be one of elite, uniform, got 'best'"),
        ({"genome": {"space": "sparse"}}, "expected genome.space to be one of expert, dense, got 'sparse'"),
        ({"model": {"dtype": "int8"}}, "expected model.dtype to be one of float32, bfloat16, float16, got 'int8'"),
        ({"baselines": ["finetune_some"]}, r"expected baselines\.0 to be one of finetune_all, finetune_all_longer, got"),
    ],
)
def test_keys_and_types(more, message):
    with pytest.raises(InputError, match=message):
        load_config(MINIMAL | more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"seed": -1}, f"expected seed to be at least 0 and below 4294967296, got -1{CORRECT}"),
        ({"seed": 2**32}, "expected seed to be at least 0 and below 4294967296, got 4294967296"),
        ({"search": {"generations": 0}}, "expected search.generations to be at least 1, got 0"),
        ({"search": {"batch_size": -4}}, "expected search.batch_size to be at least 1, got -4"),
        ({"search": {"bins": 0}}, f"expected search.bins to be at least 1, got 0{CORRECT}"),
        ({"search": {"sigma": -0.1}}, "expected search.sigma to be at least 0, got -0.1"),
        ({"search": {"sigma": float("nan")}}, "expected search.sigma to be finite, got nan"),
        ({"search": {"sigma": float("inf")}}, "expected search.sigma to be finite, got inf"),
        ({"search": {"mu": float("nan")}}, "expected search.mu to be finite, got nan"),
        ({"search": {"mu": float("-inf")}}, "expected search.mu to be finite, got -inf"),
        ({"output": "a\0b"}, r"expected output to be a text without NUL, got 'a\\x00b'"),
        ({"model": {"experts": {"os": "\0"}}}, "expected model.experts.os to be a text without NUL"),
        (bounds(os=[0, float("nan")]), r"expected search.bounds.os.1 to be finite, got nan"),
        ({"finetune": {"warmup": 1}}, "expected finetune.warmup to be at least 0 and below 1, got 1.0"),
        ({"finetune": {"learning_rate": 0}}, "expected finetune.learning_rate to be above 0, got 0.0"),
        ({"pretrain": {"final_ratio": 2}}, "expected pretrain.final_ratio to be at least 0 and at most 1, got 2.0"),
        ({"model": {"tiny": {"vocab_size": 100}}}, "expected model.tiny.vocab_size to be at least 261, got 100"),
        ({"model": {"tiny": {"breadth": 1.5}}}, "expected model.tiny.breadth to be at least 0 and at most 1, got 1.5"),
        ({"genome": {"rank": 0}}, "expected genome.rank to be at least 1, got 0"),
        ({"genome": {"strength": -1}}, "expected genome.strength to be at least 0, got -1.0"),
        ({"sandbox": {"wall_s": 0}}, "expected sandbox.wall_s to be above 0, got 0.0"),
        ({"checkpoint": {"every": 0}}, "expected checkpoint.every to be at least 1, got 0"),
        ({"engine": {"population": 0}}, "expected engine.population to be at least 1, got 0"),
        ({"mesh": {"tensor": 0}}, "expected mesh.tensor to be at least 1, or -1, got 0"),
        ({"mesh": {"population": -2}}, "expected mesh.population to be at least 1, or -1, got -2"),
        ({"tasks": [{"name": "a"}, {"name": "b", "train_size": 0}]}, r"expected tasks\.1\.train_size to be at least 1, got 0"),
        (
            {"tasks": [{"name": "a", "validation_size": -1}, {"name": "b"}]},
            r"tasks\.0\.validation_size to be at least 0, got -1",
        ),
        ({"gradient": {"steps": 0}}, "expected gradient.steps to be at least 1, got 0"),
        ({"gradient": {"groups": 0}}, "expected gradient.groups to be at least 1, got 0"),
        ({"gradient": {"learning_rate": -1}}, "expected gradient.learning_rate to be above 0, got -1.0"),
        ({"model": {"prepare": {"steps": 0}}}, "expected model.prepare.steps to be at least 1, got 0"),
        ({"model": {"prepare": {"step": 1}}}, "unknown key model.prepare.step; did you mean model.prepare.steps"),
        ({"model": {"prepare": {"shares": {"os": "nan"}}}}, "expected model.prepare.shares.os to be finite, got nan"),
        ({"export": {"elites": 0}}, r"expected export\.elites to be at least 1, got 0"),
        ({"export": {"method": "best"}}, r"export\.method to be one of selected, aggregate, best_elite, soup, got 'best'"),
    ],
)
def test_ranges(more, message):
    with pytest.raises(InputError, match=message):
        load_config(MINIMAL | more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"tasks": [{"name": "a"}]}, "at least two tasks, got 1; add a task"),
        ({"tasks": []}, "at least two tasks, got 0"),
        ({"tasks": [{"name": "a"}, {"name": "a"}]}, "unique task names, got 'a' 2 times in tasks; rename one"),
        ({"tasks": [{"name": "a/b"}, {"name": "c"}]}, r"tasks\.0\.name to be a plain file name, got 'a/b'; rename it"),
        ({"tasks": [{"name": ".."}, {"name": "c"}]}, r"tasks\.0\.name to be a plain file name, got '\.\.'"),
        ({"tasks": [{"name": "a"}, {"name": "average"}]}, "other than 'average'"),
        ({"tasks": [{"name": "a"}, {"name": "cell"}]}, "other than 'cell', which is a column of the tables or a field"),
        (bounds(os=[0.5, 0.50000001]), "low < high for the task 'os'"),
        (
            {"tasks": [{"name": name} for name in "abc"], "merges": ["slerp"]},
            "two tasks with merges: slerp, which merges two experts, got 3; remove slerp",
        ),
        ({"name": "../x"}, r"expected name to be a plain file name, got '\.\./x'"),
        ({"name": ""}, "expected name to be a plain file name, got ''"),
        ({"baselines": ["finetune_all", "finetune_all"]}, "baselines once, got 'finetune_all' twice; remove one"),
        ({"merges": ["ties", "ties"]}, "merges once, got 'ties' twice; remove one"),
        ({"engine": {"max_len": 32}}, r"engine.max_len, .*above tasks\.0\.max_new_tokens \(64\), got 32; increase"),
        ({"tasks": [{"name": "a", "test": "t.jsonl"}, {"name": "b"}]}, r"tasks\.0\.train .*no train file for task 'a'"),
        (
            {"tasks": [{"name": "a", "train": "a", "train_size": None, "validation_size": None}, {"name": "b"}]},
            r"tasks\.0\.train_size or tasks\.0\.validation_size, which share the train problems, got null for both; give one",
        ),
        (
            {"tasks": [{"name": "a"}, {"name": "b", "validation_size": 0}]},
            r"validation problems with export\.method selected, .*got tasks\.1\.validation_size 0; increase it, or set",
        ),
        (
            {"search": {"method": "qd"}, "export": {"method": "aggregate"}},
            r"export\.method selected, best_elite or soup with search\.method qd, .* got aggregate; leave it out",
        ),
        (
            {"search": {"method": "cmaes"}, "tasks": [{"name": "a"}, {"name": "b", "validation_size": 0}]},
            r"validation problems with export\.method selected, .*validation_size 0; increase it, or set export\.method: best",
        ),
        ({"search": {"alpha_low": 0.8, "alpha_high": 0.5}}, r"alpha_low to be at most search.alpha_high \(0.5\), got 0.8"),
        ({"search": {"bounds": {"mbpp": [0, 1]}}}, "search.bounds .*for the task 'dbbench', got None"),
        (bounds(os=[0]), r"search.bounds .*for the task 'os', got \[0.0\]"),
        (bounds(os=[1, 0]), r"low < high for the task 'os', got \[1.0, 0.0\]"),
        (bounds(sql=[0, 1]), r"keys of search.bounds to be tasks \(mbpp, dbbench, os\), got 'sql'; correct the name"),
        ({"search": {"bins": 2000}}, "at most 1000000 cells per archive, got 4000000 from search.bins 2000"),
        ({"search": {"cells": 1_000_001}}, "search.cells to be at least 2 and at most 1000000, got 1000001; correct"),
        ({"genome": {"space": "dense", "mutation": "gaussian"}}, "expected genome.strength with .*gaussian, got null"),
        ({"genome": {"mutation": "gaussian"}}, "genome.space: dense with genome.mutation: gaussian, .*got expert"),
        ({"genome": {"method": "randomized"}}, "expected genome.rank with genome.method: randomized, got null"),
        ({"model": {"tiny": {"num_heads": 3}}}, r"num_heads to be a multiple of model.tiny.num_kv_heads \(2\), got 3"),
        ({"model": {"tiny": {"hidden_size": 190}}}, r"hidden_size .*twice model.tiny.num_heads \(12\), got 190"),
    ],
)
def test_keys_that_do_not_fit_together(more, message):
    with pytest.raises(InputError, match=message):
        load_config(MINIMAL | more)


GIVEN = {"base": "b", "experts": {"mbpp": "x", "dbbench": "y", "os": "z"}}


def test_other_experts_follow_those_of_the_tasks():
    config = load_config(MINIMAL | {"model": {**GIVEN, "others": {"math": "m"}}})
    assert config.expert_names == ("mbpp", "dbbench", "os", "math")
    assert config.given_experts == {"mbpp": "x", "dbbench": "y", "os": "z", "math": "m"}
    assert load_config(MINIMAL).given_experts == {}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"search": {"method": "dns"}, "export": {"method": "soup"}},
            "expected search.method cycleqd or qd .*, got dns",
        ),
        ({"model": {}}, "expected model.base and model.experts with origin, got null; give the models of that run"),
        ({"search": {"steady": True, "batch_size": 1}}, "expected search.steady false with origin, .*, got true"),
        ({"search": {"budget_items": 900}}, "expected no search.budget_items with origin, .*, got 900; use search.budget"),
    ],
)
def test_a_run_that_begins_with_individuals_of_another(more, message):
    with pytest.raises(InputError, match=message):
        load_config(MINIMAL | {"model": GIVEN, "origin": "runs/x"} | more)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"base": "b", "experts": {"mbpp": "x", "dbbench": "y"}}, "model.experts .*none for 'os'; add it"),
        ({"base": "b", "experts": {"mbpp": "x", "dbbench": "y", "os": "z", "q": "w"}}, "keys of model.experts .*got 'q'"),
        ({"experts": {"mbpp": "x", "dbbench": "y", "os": "z"}}, "expected model.base beside model.experts, got null"),
        ({"base": "b", "others": {"math": "m"}}, "expected model.experts beside model.others, got null beside 'math'"),
        ({**GIVEN, "others": {"os": "m"}}, "expected names in model.others that are plain .* no tasks .*, got 'os'; rename"),
        ({**GIVEN, "others": {"a/b": "m"}}, "expected names in model.others that are plain file names .*, got 'a/b'; rename"),
    ],
)
def test_experts_and_base(model, message):
    with pytest.raises(InputError, match=message):
        load_config(MINIMAL | {"model": model})


def test_baselines_need_experts_of_this_run():
    model = {"base": "b", "experts": {"mbpp": "x", "dbbench": "y", "os": "z"}}
    with pytest.raises(InputError, match=r"no baselines with model.experts, .*got 'finetune_all'; remove one"):
        load_config(MINIMAL | {"model": model, "baselines": ["finetune_all"]})


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"mbpp": 1, "sql": 1}, r"keys of model.prepare.shares to be tasks \(mbpp, dbbench, os\), got 'sql'; correct the name"),
        ({"mbpp": 1, "os": -0.5}, r"expected model.prepare.shares.os to be at least 0, got -0.5; correct the config"),
        (
            {"mbpp": 0, "os": 0},
            r"prepare.shares with a share above 0, got {'mbpp': 0.0, 'os': 0.0}; correct one",
        ),
        ({}, r"expected model.prepare.shares with a share above 0, got {}; correct one, or leave the key out"),
    ],
)
def test_shares_of_a_prepared_base(shares, message):
    with pytest.raises(InputError, match=message):
        load_config(MINIMAL | {"model": {"prepare": {"shares": shares}}})


def test_a_task_may_have_no_share():
    names = ("mbpp", "dbbench", "os")
    for shares, expected in (
        (None, {"mbpp": 1 / 3, "dbbench": 1 / 3, "os": 1 / 3}),
        ({"os": 3, "mbpp": 1, "dbbench": 0}, {"mbpp": 0.25, "os": 0.75}),
        ({"dbbench": 0.1}, {"dbbench": 1.0}),
        ({"mbpp": 0.3, "dbbench": 0.3, "os": 0.3}, {"mbpp": 1 / 3, "dbbench": 1 / 3, "os": 1 / 3}),
    ):
        prepare = load_config(MINIMAL | {"model": {"prepare": {"shares": shares}}}).model.prepare
        assert prepare is not None
        assert prepare.share_of(names) == expected
        assert list(prepare.share_of(names)) == list(expected)


@pytest.mark.parametrize("key", ["model.prepare", "gradient"])
def test_every_task_gets_a_conversation(key):
    load_config(MINIMAL, [f"{key}={{steps: 3, batch_size: 1}}"])
    with pytest.raises(InputError, match=rf"expected {key}.steps × {key}.batch_size of at least 3, .*, got 2 × 1; increase"):
        load_config(MINIMAL, [f"{key}={{steps: 2, batch_size: 1}}"])


def test_a_small_share_needs_more_conversations():
    shares = {"mbpp": 1, "dbbench": 8, "os": 1}
    load_config(MINIMAL | {"model": {"prepare": {"shares": shares, "steps": 5, "batch_size": 2}}})
    with pytest.raises(InputError, match=r"of at least 10, so that every task with a share gets .*, got 3 × 3; incr"):
        load_config(MINIMAL | {"model": {"prepare": {"shares": shares, "steps": 3, "batch_size": 3}}})


def test_given_experts_have_a_base_of_their_own():
    model = {"base": "b", "experts": {"mbpp": "x", "dbbench": "y", "os": "z"}, "prepare": {}}
    with pytest.raises(InputError, match=r"expected no model.prepare with model.experts, .*, got both; remove one of them"):
        load_config(MINIMAL | {"model": model})


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mesh": {"population": -1, "tensor": -1}}, r"at most one axis of mesh to be -1 .*got \(-1, 1, -1\)"),
        ({"mesh": {"tensor": 2}, "genome": {"space": "dense"}}, "mesh.fsdp and mesh.tensor to be 1 .*got 1 and 2"),
        ({"engine": {"population": 2}}, "model.experts that are LoRA adapters with engine.population 2"),
        ({"engine": {"population": 2}, "genome": {"space": "dense"}}, "genome.space: expert with .*got dense"),
        ({"engine": {"population": 2}, "mesh": {"fsdp": -1}}, "groups of one device.*got -1 and 1"),
        ({"engine": {"population": 9}}, r"at most search.batch_size \(4\), .*got 9; decrease it"),
        ({"search": {"steady": True}}, "search.batch_size 1 with search.steady, .*got cycleqd and 4; correct one"),
        (
            {"search": {"steady": True, "method": "nsga2", "batch_size": 1}, "export": {"method": "best_elite"}},
            "search.method cycleqd or qd .*got nsga2 and 1",
        ),
        ({"search": {"steady": True, "batch_size": 1}, "engine": {"population": 2}}, r"at most search.batch_size \(1\)"),
    ],
)
def test_devices(more, message):
    with pytest.raises(InputError, match=message):
        load_config(MINIMAL | more)


@pytest.mark.parametrize(("population", "deadline", "is_enough"), [(1, 11, True), (2, 20, True), (2, 19, False)])
def test_a_group_that_fails_has_the_time_to_be_evaluated_one_by_one(population, deadline, is_enough):
    more = {"model": GIVEN, "engine": {"population": population}, "ray": {"address": "auto", "deadline": deadline}}
    more["search"] = {"deadline": 10}
    if is_enough:
        load_config(MINIMAL | more)
        return
    with pytest.raises(InputError, match=r"ray.deadline to be at least twice search.deadline \(10\) with .* 2, .*got 19; incr"):
        load_config(MINIMAL | more)


@pytest.mark.parametrize(
    ("key", "changes", "message"),
    [
        ("search", {"batch_size": 0}, "expected search.batch_size to be at least 1, got 0"),
        ("search", {"sigma": float("nan")}, "expected search.sigma to be finite, got nan"),
        ("search", {"bins": 2000}, "at most 1000000 cells per archive"),
        ("engine", {"max_len": 32}, r"above tasks\.0\.max_new_tokens"),
    ],
)
def test_a_config_that_was_not_loaded(key, changes, message):
    config = load_config(MINIMAL)
    check_config(config)
    changed = dataclasses.replace(config, **{key: dataclasses.replace(getattr(config, key), **changes)})
    with pytest.raises(InputError, match=message):
        check_config(changed)


def test_required_keys():
    with pytest.raises(InputError, match="expected the key tasks, got none"):
        load_config({"name": "x"})
    with pytest.raises(InputError, match="expected the key name, got none"):
        load_config({"tasks": []})


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            {"method": "annealing"},
            "expected search.method to be one of cycleqd, qd, dns, random, cmaes, nsga2, got 'annealing'",
        ),
        ({"budget": 0}, "expected search.budget to be at least 1, got 0"),
        ({"groups": 0, "method": "cmaes"}, "expected search.groups to be at least 1, got 0"),
        ({"step": 0, "method": "cmaes"}, "expected search.step to be above 0, got 0.0"),
        ({"groups": 2}, "expected search.groups with search.method random, cmaes or nsga2 only, got 2 with cycleqd; leave"),
        ({"mu": 2, "method": "cmaes"}, "expected search.mu with search.method cycleqd, qd or dns only, got 2.0 with cmaes"),
        ({"population": 8, "method": "qd"}, "expected search.population with search.method nsga2 or dns only, got 8 with qd"),
        ({"descriptors": "scores"}, "expected search.descriptors with search.method dns only, got scores with cycleqd; leave"),
        ({"low": 1, "method": "random"}, r"expected search.low below search.high \(1.0\), got 1.0; correct one of them"),
        ({"method": "cmaes", "batch_size": 3}, "expected search.batch_size of at least 4, the smallest population of CMA-ES"),
        ({"method": "nsga2", "population": 2}, "expected search.population of at least 3, the number of experts, got 2"),
        ({"budget": 6}, "expected search.budget of at least 7, which the experts and the first population need, got 6"),
        ({"method": "nsga2", "budget": 31}, "expected search.budget of at least 32, which the experts and the first"),
        ({"method": "qd", "bins": 101}, "expected at most 1000000 cells per archive, got 1030301 from search.bins 101"),
    ],
)
def test_search_methods(search, message):
    with pytest.raises(InputError, match=message):
        load_config(MINIMAL | {"search": search})


@pytest.mark.parametrize("method", ["dns", "random", "nsga2"])
def test_a_method_without_archives_has_no_cells(method):
    tasks = [{"name": f"t{k}"} for k in range(7)]  # 15⁶ cells
    assert load_config({"name": "x", "tasks": tasks, "search": {"method": method}}).search.method == method


def test_coefficients_of_a_dense_genome():
    with pytest.raises(
        InputError, match=r"expected genome.space: expert with search.method random, .*, got dense; leave it out"
    ):
        load_config(MINIMAL | {"search": {"method": "random"}, "genome": {"space": "dense"}})


@pytest.mark.parametrize(
    ("overrides", "selects"),
    [
        ([], True),
        (["tasks.0.validation_size=null"], True),
        (["export.method=soup"], True),
        (["tasks.0.validation_size=0", "export.method=aggregate"], False),
        (["tasks.0.validation_size=0", "export.method=best_elite"], False),
        (["search.method=qd"], True),
        (["search.method=cmaes", "export.method=soup"], True),
        (["search.method=qd", "export.method=best_elite"], True),
        (["search.method=qd", "tasks.0.validation_size=0", "export.method=best_elite"], False),
    ],
)
def test_whether_a_run_selects(overrides, selects):
    assert load_config(MINIMAL, overrides).selects == selects


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"racing": {"first": 0}}, "expected search.racing.first to be above 0 and at most 1, got 0.0"),
        ({"racing": {"first": 1.5}}, "expected search.racing.first to be at most 1 and above 0|at most 1"),
        ({"racing": {"confidence": 1}}, "expected search.racing.confidence to be above 0 and below 1, got 1.0"),
        ({"racing": {"confidence": 0}}, "expected search.racing.confidence to be above 0 and below 1, got 0.0"),
        ({"racing": {"least": 33}}, r"expected search.racing.least to be at most tasks\.0\.train_size \(32\), got 33"),
        ({"racing": {}, "method": "cmaes"}, "expected search.racing with search.method cycleqd or qd only, got .* with cmaes"),
        ({"racing": {}, "steady": True, "batch_size": 1}, "expected no search.steady with search.racing, because"),
    ],
)
def test_racing(more, message):
    export = {"export": {"method": "best_elite"}} if "method" in more else {}
    with pytest.raises(InputError, match=message):
        load_config(MINIMAL | export | {"search": more})


def test_racing_is_off_by_default_and_refuses_a_cluster():
    assert load_config(MINIMAL).search.racing is None
    with pytest.raises(InputError, match=r"expected no ray\.address with search\.racing, because the workers of a cluster"):
        load_config(MINIMAL | {"search": {"racing": {}}, "ray": {"address": "auto"}})
