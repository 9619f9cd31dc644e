"""The configuration: round trips, overrides, and errors that name the key."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from cycleqd_jax.config import RunConfig, TaskConfig, load_config, to_dict, to_yaml
from cycleqd_jax.types import InputError

MINIMAL = {"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}, {"name": "os", "kind": "os_interaction"}]}


@pytest.fixture
def write(tmp_path):
    def write(tree) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree), "utf-8")
        return str(path)

    return write


def merged(**more):
    return {**MINIMAL, **more}


def test_defaults_are_the_papers(write):
    config = load_config(write(MINIMAL))
    assert isinstance(config, RunConfig)
    assert config.task_names == ("mbpp", "dbbench", "os")
    assert config.tasks[0] == TaskConfig("mbpp", "mbpp")
    assert config.tasks[2].kind == "os_interaction"
    assert str(config.folder) == "runs/demo"
    assert (config.genome.space, config.genome.rank, config.genome.mutation, config.genome.strength) == (
        "expert",
        None,
        "svd",
        None,
    )
    s = config.search
    assert (s.alpha_low, s.alpha_high, s.elite_span, s.mu, s.sigma, s.bins, s.selection) == (
        0.5,
        0.8,
        "paper",
        1.0,
        0.03,
        15,
        "elite",
    )


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"output": "elsewhere", "seed": 7, "search": {"bounds": {"mbpp": [0, 1], "dbbench": [0.1, 0.9], "os": [0, 0.5]}}},
        {"model": {"base": "b", "experts": {"mbpp": "x", "dbbench": "y", "os": "z"}, "dtype": "bfloat16"}},
        {"genome": {"space": "dense", "mutation": "gaussian", "strength": 1e-3}, "pretrain": {"learning_rate": 3}},
        {"name": "naïve", "sandbox": {"workers": 3, "wall_s": 2}, "checkpoint": {"every": 1}},
    ],
)
def test_round_trip(write, more):
    config = load_config(write(merged(**more)))
    text = to_yaml(config)
    assert load_config(write(text)) == config
    assert to_yaml(load_config(write(text))) == text
    assert yaml.safe_load(text) == to_dict(config)
    assert set(to_dict(config)) == {field.name for field in dataclasses.fields(RunConfig)}


def test_a_resolved_config_with_versions_may_be_run_again(write):
    config = load_config(write(MINIMAL))
    assert load_config(write({**to_dict(config), "versions": {"jax": "0.10"}})) == config


def test_configs_are_frozen(write):
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config(write(MINIMAL)).seed = 3


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("seed=5", lambda c: c.seed, 5),
        ("search.generations=7", lambda c: c.search.generations, 7),
        ("search.mu=1", lambda c: c.search.mu, 1.0),
        ("finetune.learning_rate=1e-3", lambda c: c.finetune.learning_rate, 1e-3),
        ("genome.rank=null", lambda c: c.genome.rank, None),
        ("model.dtype=bfloat16", lambda c: c.model.dtype, "bfloat16"),
        ("tasks.1.train_size=8", lambda c: c.tasks[1].train_size, 8),
        ("tasks.os.train_size=null", lambda c: c.tasks[2].train_size, None),
        ("tasks.os.options.prompt=agentbench", lambda c: c.tasks[2].options, {"prompt": "agentbench"}),
        ("search.bounds={mbpp: [0, 1], dbbench: [0, 1], os: [0, 2]}", lambda c: c.search.bounds["os"], [0.0, 2.0]),
        ("output=a=b", lambda c: c.output, "a=b"),
        ("tasks.0={name: other, kind: mbpp}", lambda c: c.task_names[0], "other"),
    ],
)
def test_overrides(write, override, read, value):
    got = read(load_config(write(MINIMAL), [override]))
    assert got == value
    assert type(got) is type(value)


def test_later_overrides_win(write):
    assert load_config(write(MINIMAL), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "key=value.*'seed'"),
        ("=5", "key=value"),
        ("seeed=5", "seeed.*did you mean seed"),
        ("search.generation=5", "search.generation .*did you mean search.generations"),
        ("tasks.7.name=x", r"tasks\.7.*3 items"),
        ("tasks.nope.train_size=2", r"tasks\.nope"),
        ("tasks.os.trainsize=2", r"tasks\.2\.trainsize.*did you mean tasks\.2\.train_size"),
        ("name.x=3", r"name\.x.*not a mapping"),
        ("seed={a: [}", "not YAML"),
        ("search=3", "search must be a mapping.*3"),
        ("search.mu=fast", "search.mu.*float.*'fast'"),
        ("tasks.os.name=mbpp", "unique.*'mbpp'"),
    ],
)
def test_bad_overrides(write, override, message):
    with pytest.raises(InputError, match=message):
        load_config(write(MINIMAL), [override])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"serch": {}}, "unknown key serch.*did you mean search"),
        ({"zzz": 1}, "unknown key zzz.*known keys: .*tasks"),
        ({"search": {"alpha_lo": 0.1}}, "search.alpha_lo.*did you mean search.alpha_low"),
        ({"tasks": [{"name": "a", "trian": "x"}, {"name": "b"}]}, r"tasks\.0\.trian.*did you mean tasks\.0\.train"),
        ({"tasks": [{"kind": "mbpp"}, {"name": "b"}]}, r"lacks the key tasks\.0\.name"),
        ({"tasks": "mbpp"}, "tasks must be a list"),
        ({"tasks": None}, "tasks must be a list"),
        ({"tasks": [{"name": "a"}]}, "at least two tasks, but lists 1"),
        ({"tasks": []}, "at least two tasks, but lists 0"),
        ({"tasks": [{"name": "a"}, "b"]}, r"tasks\.1 must be a mapping"),
        ({"tasks": [{"name": "a"}, {"name": "a"}]}, "unique.*'a'.*2 times"),
        ({"tasks": [{"name": "a/b"}, {"name": "c"}]}, "'a/b'"),
        ({"tasks": [{"name": ".."}, {"name": "c"}]}, r"'\.\.'"),
        ({"name": "../x"}, r"'\.\./x'"),
        ({"name": ""}, "names of runs"),
        ({"name": 5}, "name must be of type str"),
        ({"seed": -1}, "seed must be zero or positive"),
        ({"seed": 1.5}, "seed must be of type int.*1.5"),
        ({"seed": True}, "seed must be of type int.*True"),
        ({"seed": "7"}, "seed must be of type int"),
        ({"search": {"generations": 0}}, "search.generations must be positive"),
        ({"search": {"batch_size": -4}}, "search.batch_size must be positive"),
        ({"search": {"bins": 0}}, "search.bins must be positive"),
        ({"search": {"sigma": -0.1}}, "search.sigma must be zero or positive"),
        ({"search": {"sigma": float("nan")}}, "search.sigma"),
        ({"search": {"sigma": float("inf")}}, "search.sigma.*finite"),
        ({"search": {"mu": float("nan")}}, "search.mu.*finite"),
        ({"search": {"mu": float("-inf")}}, "search.mu.*finite"),
        ({"search": {"alpha_low": 0.8, "alpha_high": 0.5}}, "alpha_low|alpha_high"),
        ({"search": {"selection": "best"}}, "search.selection must be one of elite, uniform.*'best'"),
        ({"search": {"bounds": {"mbpp": [0, 1]}}}, "search.bounds.*'dbbench'"),
        ({"search": {"bounds": {"mbpp": [0, 1], "dbbench": [0, 1], "os": [0]}}}, "search.bounds.*'os'"),
        ({"search": {"bounds": {"mbpp": [0, 1], "dbbench": [0, 1], "os": [1, 0]}}}, "search.bounds.*os"),
        ({"search": {"bounds": {"mbpp": [0, 1], "dbbench": [0, 1], "os": [0, float("nan")]}}}, "search.bounds.*os"),
        ({"search": {"bounds": {"mbpp": [0, 1], "dbbench": [0, 1], "os": [0, 1], "sql": [0, 1]}}}, "search.bounds.*sql"),
        ({"search": {"bins": 2000}}, "search.bins|bins"),
        ({"seed": 2**32}, "seed must be below"),
        ({"finetune": {"warmup": 1}}, "finetune.warmup"),
        ({"pretrain": {"final_ratio": 2}}, "pretrain.final_ratio"),
        ({"model": {"tiny": {"vocab_size": 100}}}, "model.tiny.vocab_size"),
        ({"model": {"tiny": {"breadth": 1.5}}}, "model.tiny.breadth"),
        ({"engine": {"max_len": 32}}, "engine.max_len"),
        ({"baselines": ["finetune_some"]}, "baselines.0 must be one of"),
        ({"baselines": ["finetune_all", "finetune_all"]}, "twice"),
        ({"genome": {"space": "dense", "mutation": "gaussian"}}, "genome.strength"),
        ({"genome": {"rank": 0}}, "genome.rank must be positive"),
        ({"genome": {"space": "sparse"}}, "genome.space must be one of expert, dense"),
        ({"genome": {"mutation": "gaussian"}}, "genome.mutation.*genome.space"),
        ({"genome": {"strength": -1}}, "genome.strength"),
        ({"model": {"base": "b", "experts": {"mbpp": "x", "dbbench": "y"}}}, "model.experts.*lacks 'os'"),
        ({"model": {"base": "b", "experts": {"mbpp": "x", "dbbench": "y", "os": "z", "q": "w"}}}, "model.experts.*'q'"),
        ({"model": {"experts": {"mbpp": "x", "dbbench": "y", "os": "z"}}}, "model.base"),
        ({"model": {"dtype": "int8"}}, "model.dtype must be one of"),
        ({"model": {"tiny": {"num_heads": 3}}}, "num_heads"),
        ({"tasks": [{"name": "a", "test": "t.jsonl"}, {"name": "b"}]}, "'a'.*train file"),
        ({"finetune": {"warmup_fraction": 1.5}}, "finetune.warmup_fraction"),
        ({"sandbox": {"wall_s": 0}}, "sandbox.wall_s must be positive"),
        ({"checkpoint": {"every": 0}}, "checkpoint.every must be positive"),
        ({"checkpoint": []}, "checkpoint must be a mapping"),
    ],
)
def test_errors_name_the_key(write, more, message):
    with pytest.raises(InputError, match=message):
        load_config(write(merged(**more)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mesh": {"tensor": 0}}, "mesh must have positive sizes"),
        ({"mesh": {"population": -2}}, "mesh must have positive sizes"),
        ({"mesh": {"population": -1, "tensor": -1}}, "mesh must have positive sizes"),
        ({"mesh": {"tensors": 2}}, "unknown key mesh.tensors"),
        ({"mesh": {"tensor": 2}, "genome": {"space": "dense"}}, "mesh.fsdp and mesh.tensor must be 1"),
        ({"engine": {"population": 0}}, "engine.population must be positive"),
        ({"engine": {"population": 2}}, "need experts that are LoRA adapters"),
        ({"engine": {"population": 2}, "genome": {"space": "dense"}}, "genome.space: expert"),
        ({"engine": {"population": 2}, "mesh": {"fsdp": -1}}, "groups of one device"),
        ({"engine": {"population": 9}}, "search.batch_size"),
    ],
)
def test_devices_that_can_not_be(write, more, message):
    with pytest.raises(InputError, match=message):
        load_config(write(merged(**more)))


def test_required_keys(write):
    with pytest.raises(InputError, match="lacks the key tasks"):
        load_config(write({"name": "x"}))
    with pytest.raises(InputError, match="lacks the key name"):
        load_config(write({"tasks": []}))


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "mapping"), ("- a\n", "mapping.*list"), ("a: [1\nb: 2\n", r"not YAML \(line"), ("\x00", "not YAML")],
)
def test_files_that_are_no_configs(write, text, message):
    with pytest.raises(InputError, match=message):
        load_config(write(text))


def test_a_key_given_twice_is_an_error(write):
    text = yaml.safe_dump(MINIMAL) + "seed: 1\nseed: 2\n"
    with pytest.raises(InputError, match="seed"):
        load_config(write(text))


def test_files_that_are_not_there_or_not_text(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml can't be read"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="can't be read"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: na\xefve\n")
    with pytest.raises(InputError, match="not YAML"):
        load_config(tmp_path / "latin.yaml")


def test_variables_of_the_environment(write, monkeypatch):
    tasks = [{"name": "mbpp", "train": "${HERE}/mbpp.jsonl", "options": {"prompt": "brief"}}, {"name": "dbbench"}]
    path = write(merged(tasks=tasks, output="runs/$HERE/${HERE}-${THERE_2}"))
    monkeypatch.setenv("HERE", "data")
    monkeypatch.setenv("THERE_2", "${HERE}")  # not filled in again
    config = load_config(path)
    assert config.tasks[0].train == "data/mbpp.jsonl"
    assert config.output == "runs/$HERE/data-${HERE}"
    assert load_config(path, ["tasks.mbpp.train=${THERE_2}"]).tasks[0].train == "${HERE}"
    monkeypatch.delenv("HERE")
    with pytest.raises(InputError, match=r"tasks\.0\.train is .*, but the environment variable HERE is not set"):
        load_config(path, ["output=null"])
    assert load_config(path, ["tasks.mbpp.train=x", "output=null"]).tasks[0].train == "x"


def test_shipped_configs_load(monkeypatch):
    monkeypatch.setenv("CYCLEQD_DATA", "/data")
    configs = {path.stem: load_config(path) for path in (Path(__file__).parents[2] / "configs").glob("*.yaml")}
    assert {name: config.name for name, config in configs.items()} == {name: name for name in configs}
    main = configs["smollm2_cs"]
    assert [task.train for task in main.tasks if not str(task.train).startswith("/data/")] == []
