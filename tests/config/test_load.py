"""Reading configs: YAML files, mappings, overrides, environment variables, and round trips."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import yaml

from cycleqd_jax.config import RunConfig, TaskConfig, load_config, task_options, to_dict, to_yaml
from cycleqd_jax.types import InputError

from .conftest import MINIMAL


def test_the_defaults_are_the_papers():
    config = load_config(MINIMAL)
    assert isinstance(config, RunConfig)
    assert config.task_names == ("mbpp", "dbbench", "os")
    assert config.tasks[0] == TaskConfig("mbpp", "mbpp")
    assert config.tasks[2].kind == "os_interaction"
    assert str(config.folder) == "runs/demo"
    g, s = config.genome, config.search
    assert (g.space, g.rank, g.mutation, g.strength) == ("expert", None, "svd", None)
    assert (s.alpha_low, s.alpha_high, s.elite_span) == (0.5, 0.8, "paper")
    assert (s.mu, s.sigma, s.bins, s.selection) == (1.0, 0.03, 15, "elite")


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
    config = load_config(write(MINIMAL | more))
    text = to_yaml(config)
    assert load_config(write(text)) == config
    assert to_yaml(load_config(write(text))) == text
    assert yaml.safe_load(text) == to_dict(config)
    assert set(to_dict(config)) == {field.name for field in dataclasses.fields(RunConfig)}


def test_a_mapping_is_read_like_a_file(write):
    tree = MINIMAL | {"search": {"bins": 7, "bounds": {"mbpp": [0, 1], "dbbench": [0, 1], "os": [0, 1]}}}
    before = copy.deepcopy(tree)
    overrides = ["tasks.os.train_size=8", "search.bins=9", "engine.slots=4"]
    assert load_config(tree, overrides) == load_config(write(tree), overrides)
    assert tree == before


def test_a_mapping_may_hold_tuples_and_paths(tmp_path):
    bounds = {"mbpp": (0, 1), "dbbench": (0, 0.5)}
    config = load_config(
        {"name": "demo", "tasks": ({"name": "mbpp"}, {"name": "dbbench"}), "output": tmp_path, "search": {"bounds": bounds}}
    )
    assert config.folder == tmp_path
    assert config.output == str(tmp_path)
    assert config.search.bounds == {"mbpp": [0.0, 1.0], "dbbench": [0.0, 0.5]}


def test_environment_variables_in_a_mapping(monkeypatch):
    monkeypatch.setenv("HERE", "data")
    assert load_config(MINIMAL | {"output": "${HERE}/run"}).output == "data/run"


def test_a_config_is_a_mapping_of_keys():
    with pytest.raises(InputError, match=r"expected tasks\.0 to be a mapping, got 'mbpp'; correct the config"):
        load_config({"name": "demo", "tasks": ["mbpp", "dbbench"]})


@pytest.mark.parametrize("source", [MINIMAL, "file"])
def test_the_versions_in_a_resolved_config_are_ignored(write, source):
    config = load_config(MINIMAL)
    tree = {**to_dict(config), "versions": {"jax": "0.10"}}
    assert load_config(write(tree) if source == "file" else tree) == config


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load_config(MINIMAL).seed = 3


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
def test_overrides(override, read, value):
    got = read(load_config(MINIMAL, [override]))
    assert got == value
    assert type(got) is type(value)


def test_later_overrides_win():
    assert load_config(MINIMAL, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "form key=value, got 'seed'; correct it"),
        ("=5", "key=value, got '=5'"),
        ("seeed=5", "unknown key seeed; did you mean seed"),
        ("search.generation=5", "search.generation; did you mean search.generations"),
        ("tasks.7.name=x", r"one of the 3 items of tasks, got tasks\.7 in the override 'tasks\.7\.name=x'; correct it"),
        ("tasks.nope.train_size=2", r"items of tasks, got tasks\.nope"),
        ("tasks.os.trainsize=2", r"tasks\.2\.trainsize; did you mean tasks\.2\.train_size"),
        ("name.x=3", r"expected name to be a mapping, got 'demo' for name\.x"),
        ("seed={a: [}", r"expected YAML as the value, got '{a: \[}' \(line 1: .+\) in the override"),
        ("seed=2020-13-45", "expected YAML as the value, got '2020-13-45'"),
        ("seed=&a [*a]", "expected YAML as the value"),
        ("search={bins: 1, bins: 2}", r"got '{bins: 1, bins: 2}' \(the key 'bins' twice, line 1\) in the override"),
        (f"seed={'[' * 2000}", "expected YAML as the value"),
        ("search=3", "expected search to be a mapping, got 3"),
        ("search.mu=fast", "expected search.mu to be of type float, got 'fast'"),
        ("tasks.os.name=mbpp", "unique task names, got 'mbpp' 2 times"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(InputError, match=message):
        load_config(MINIMAL, [override])


def test_options_of_a_task_without_a_config():
    options, sandbox = task_options(["prompt=brief", "rounds=3", "sandbox.wall_s=2"])
    assert options == {"prompt": "brief", "rounds": 3}
    assert (sandbox.wall_s, sandbox.backend) == (2.0, "bwrap")
    with pytest.raises(InputError, match=r"expected sandbox\.workers to be at least 1, got 0"):
        task_options(["sandbox.workers=0"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mapping of keys, got NoneType in .*config.yaml"),
        ("- a\n", "mapping of keys, got list"),
        ("a: [1\nb: 2\n", r"not YAML in .*config.yaml \(line 2: .+\); correct the file"),
        ("\x00", "not YAML"),
        ("seed: 2020-13-45\n", r"not YAML in .*config.yaml \(month must be in 1..12\); correct the file"),
        ("seed: !!int x\n", "not YAML"),
        ("seed: !!timestamp x\n", "not YAML"),
        (f"seed: {'9' * 5000}\n", "not YAML"),
        (f"seed: {'[' * 2000}{']' * 2000}\n", "not YAML"),
        ("tasks: &a [*a]\n", "not YAML"),
    ],
)
def test_files_with_other_content(write, text, message):
    with pytest.raises(InputError, match=message):
        load_config(write(text))


def test_a_duplicate_key_is_an_error(write):
    text = yaml.safe_dump(MINIMAL) + "seed: 1\nseed: 2\n"
    with pytest.raises(InputError, match=r"not YAML in .*\.yaml \(the key 'seed' twice, line \d+\); correct the file"):
        load_config(write(text))


def test_unreadable_files(tmp_path):
    with pytest.raises(InputError, match=r"expected a config in .*nowhere\.yaml, got No such file .*; correct the path"):
        load_config(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="got Is a directory"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: na\xefve\n")
    with pytest.raises(InputError, match=r"not YAML in .*latin\.yaml"):
        load_config(tmp_path / "latin.yaml")


def test_environment_variables(write, monkeypatch):
    tasks = [{"name": "mbpp", "train": "${HERE}/mbpp.jsonl", "options": {"prompt": "brief"}}, {"name": "dbbench"}]
    path = write(MINIMAL | {"tasks": tasks, "output": "runs/$HERE/${HERE}-${THERE_2}"})
    monkeypatch.setenv("HERE", "data")
    monkeypatch.setenv("THERE_2", "${HERE}")  # the value is not expanded again
    config = load_config(path)
    assert config.tasks[0].train == "data/mbpp.jsonl"
    assert config.output == "runs/$HERE/data-${HERE}"
    assert load_config(path, ["tasks.mbpp.train=${THERE_2}"]).tasks[0].train == "${HERE}"
    monkeypatch.delenv("HERE")
    message = r"variable HERE to be set, got nothing for '\$\{HERE\}/mbpp.jsonl' in tasks\.0\.train; set it, or override"
    with pytest.raises(InputError, match=message):
        load_config(path, ["output=null"])
    assert load_config(path, ["tasks.mbpp.train=x", "output=null"]).tasks[0].train == "x"


def test_shipped_configs_load(monkeypatch):
    for name in ("CYCLEQD_DATA", "CYCLEQD_VISION"):
        monkeypatch.setenv(name, "/data")
    configs = {path.stem: load_config(path) for path in (Path(__file__).parents[2] / "configs").glob("*.yaml")}
    assert {name: config.name for name, config in configs.items()} == {name: name for name in configs}
    main = configs["smollm2_cs"]
    assert [task.train for task in main.tasks if not str(task.train).startswith("/data/")] == []
    for name in ("llama3_8b_cs", "llama3_70b_cs"):  # MBPP+ of EvalPlus, as in the paper
        coding = configs[name].tasks[0]
        assert (coding.name, coding.kind, coding.options) == ("mbpp", "evalplus", {"tests": "plus"})
        assert (coding.train_size, coding.validation_size, coding.test_size) == (189, 0, 189)
