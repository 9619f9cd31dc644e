"""The inputs of a run, resolved from its config and the headers of files."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import jax
import pytest

from cycleqd_jax.config import load_config
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import open_checkpoint
from cycleqd_jax.models.llama import LlamaConfig, init_params
from cycleqd_jax.models.tokenizer import train_tiny_tokenizer
from cycleqd_jax.runs import Run, resolve
from cycleqd_jax.runs.families import family_of
from cycleqd_jax.runs.inputs.tasks import resolve_tasks
from cycleqd_jax.tasks.records import read_rows, split_evenly
from cycleqd_jax.types import SPLITS, InputError

DEMO = {"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}]}


def test_a_config_that_was_not_loaded_is_checked():
    config = load_config(DEMO)
    changed = dataclasses.replace(config, search=dataclasses.replace(config.search, batch_size=0, bins=-3))
    with pytest.raises(InputError, match=r"expected search.batch_size to be at least 1, got 0; correct the config"):
        resolve(changed)


@pytest.mark.parametrize("rows", [7, 8])
@pytest.mark.parametrize("size", [None, 2, 32])
def test_the_number_of_train_problems_is_that_which_is_played(tmp_path, rows, size):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"id": {i}}}\n' for i in range(rows)))
    tasks = [{"name": "one", "kind": "mbpp", "train": str(path), "train_size": size, "validation_size": 0}]
    tasks.append(tasks[0] | {"name": "two", "test": str(path)})
    one, two = resolve_tasks(load_config(DEMO | {"tasks": tasks, "export": {"method": "aggregate"}}))
    assert one.size("train") == len(split_evenly(read_rows(path))[0][:size])
    assert two.size("train") == len(read_rows(path)[:size])


@pytest.mark.parametrize("size", [None, 2, 4])
def test_the_number_of_test_problems(tmp_path, size):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"id": {i}}}\n' for i in range(7)))
    tasks = [{"name": "one", "kind": "mbpp", "train": str(path), "train_size": 1, "validation_size": 1, "test_size": size}]
    tasks.append(tasks[0] | {"name": "two", "test": str(path)})
    one, two = resolve_tasks(load_config(DEMO | {"tasks": tasks}))
    assert one.size("test") == len(split_evenly(read_rows(path))[1][:size])
    assert two.size("test") == len(read_rows(path)[:size])


def test_more_test_problems_than_there_are_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"id": {i}}}\n' for i in range(7)))
    tasks = [{"name": "one", "kind": "mbpp", "train": str(path), "train_size": 1, "validation_size": 1, "test_size": 8}]
    tasks.append(tasks[0] | {"name": "two", "test": str(path)})
    one, two = resolve_tasks(load_config(DEMO | {"tasks": tasks}))
    message = (
        "expected at least 8 test problems for test_size 8, got {} in {}.* of task '{}'; decrease it, or set test_size: null"
    )
    with pytest.raises(InputError, match=message.format(4, "the test half of ", "one")):
        one.size("test")
    with pytest.raises(InputError, match=message.format(7, "", "two")):
        two.size("test")


def test_repeated_problems_are_counted_in_their_half(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"id": {i}, "text": "{i % 3}"}}\n' for i in range(6)))
    tasks = [{"name": "one", "kind": "mbpp", "train": str(path), "train_size": None, "validation_size": 0, "test_size": None}]
    one, _ = resolve_tasks(load_config(DEMO | {"tasks": [*tasks, {"name": "dbbench"}], "export": {"method": "aggregate"}}))
    assert (one.size("train"), one.size("test")) == (2, 4)


def test_the_number_of_miniature_problems():
    tasks = [{"name": "mbpp", "train_size": 5, "validation_size": None, "test_size": None}, {"name": "dbbench"}]
    one, two = resolve_tasks(load_config(DEMO | {"tasks": tasks}))
    assert [one.size(split) for split in SPLITS] == [5, 32, 64]
    assert [two.size(split) for split in SPLITS] == [32, 32, 64]


@pytest.mark.parametrize(
    ("size", "validation", "played", "held"),
    [(2, 1, 2, 1), (2, None, 2, 1), (1, None, 1, 2), (None, 1, 2, 1), (None, 0, 3, 0), (8, 0, 3, 0)],
)
def test_validation_problems_are_not_played_in_the_search(tmp_path, size, validation, played, held):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"id": {i}}}\n' for i in range(6)))
    task = {"name": "one", "kind": "mbpp", "train": str(path), "train_size": size, "validation_size": validation}
    tree = DEMO | {"tasks": [task, {"name": "mbpp"}], "export": {"method": "aggregate"}}
    found = resolve_tasks(load_config(tree))[0]
    assert (found.size("train"), found.size("validation")) == (played, held)
    task["train_size"], task["validation_size"] = 3, 1
    with pytest.raises(
        InputError,
        match=r"at least 4 train problems for train_size 3 and validation_size 1, got 3 in the train half of .*rows\.jsonl of "
        r"task 'one'; decrease one of them, or set validation_size: 0",
    ):
        resolve_tasks(load_config(tree))[0].size("train")
    task["test"] = str(path)
    assert resolve_tasks(load_config(tree))[0].size("train") == 3


def test_the_size_of_a_file_that_is_elsewhere(tmp_path):
    tasks = [
        {"name": name, "train": str(tmp_path / "absent"), "train_size": size} for name, size in (("mbpp", 5), ("dbbench", None))
    ]
    given, unknown = resolve_tasks(load_config(DEMO | {"tasks": tasks}))
    assert given.size("train") == 5
    with pytest.raises(InputError, match="no file at"):
        unknown.size("train")
    (tmp_path / "absent").write_text('{"id": 1}\n')
    with pytest.raises(InputError, match=f"at least two records .*, got 1 in {tmp_path / 'absent'}, line 1; give more"):
        given.size("train")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"options": {"protocol": "json"}}, "option protocol to be one of text, tools, got 'json' in task 'db'"),
        ({"options": {"rounds": "3"}}, "option rounds to be a whole number of at least 1 or null, got '3' in task 'db'"),
        ({"kind": "mbpp", "options": {"protocol": "tools"}}, r"an option of mbpp \(.*\), got 'protocol' in task 'db'"),
        ({"train": None, "options": {"protocol": "tools"}}, "a train file for task 'db' with protocol: tools, got none, and"),
    ],
)
def test_options_of_tasks_are_checked_at_once(task, message):
    given = {"name": "db", "kind": "dbbench", "train": "absent.jsonl"} | task
    config = load_config(
        DEMO | {"tasks": [{key: value for key, value in given.items() if value is not None}, {"name": "mbpp"}]}
    )
    with pytest.raises(InputError, match=f"expected {message}"):
        resolve_tasks(config)


def test_tasks_with_tools(tmp_path):
    tools = {"name": "db", "kind": "dbbench", "train": "absent.jsonl", "options": {"protocol": "tools"}}
    first, second = resolve_tasks(load_config(DEMO | {"tasks": [tools, {"name": "mbpp"}]}))
    assert (first.uses_tools, first.max_replies) == (True, 15)
    assert (second.uses_tools, second.max_replies) == (False, 1)


@pytest.fixture
def models(tmp_path):
    """A base of 256 positions, and two experts, one of which has 96."""
    tokenizer = train_tiny_tokenizer(["1 + 1 = 2"] * 3, 300)
    for name, positions in (("base", 256), ("long", 256), ("short", 96)):
        config = LlamaConfig(tokenizer.vocab_size, 16, 16, 1, 2, 1, 8, max_position_embeddings=positions)
        hf.save(tmp_path / name, config, init_params(config, jax.random.key(0)), tokenizer=tokenizer)
    experts = {"mbpp": str(tmp_path / "long"), "dbbench": str(tmp_path / "short")}
    return DEMO | {"model": {"base": str(tmp_path / "base"), "experts": experts}, "engine": {"max_len": 128}}


@pytest.mark.exhaustive
@pytest.mark.parametrize("planned", [False, True])
def test_the_model_of_the_shortest_context_is_named(models, tmp_path, planned):
    def of(tree, *overrides):
        config = load_config(tree, overrides)
        return resolve(config, architecture=open_checkpoint(config.model.base).config if planned else None)

    with pytest.raises(
        InputError, match=f"at most 96, the positions of the expert {tmp_path / 'short'}, got 128; make it smaller"
    ):
        of(models)
    of(models, "engine.max_len=96", "tasks.0.max_new_tokens=32", "tasks.1.max_new_tokens=32")
    with pytest.raises(InputError, match=f"at most 96, the positions of the base {tmp_path / 'short'}, got 128"):
        of(models, f"model.base={tmp_path / 'short'}")


def test_experts_of_another_shape_are_refused_where_a_run_is_planned(models, tmp_path):
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0}))
    overrides = ["engine.max_len=96", "tasks.0.max_new_tokens=32", "tasks.1.max_new_tokens=32"]
    base = open_checkpoint(tmp_path / "base").config
    with pytest.raises(
        InputError, match=rf"expected rope_theta .* of the base .*, got 5000\.0 in the expert {tmp_path / 'short'}"
    ):
        resolve(load_config(models, overrides), architecture=base)
    resolve(load_config(models, overrides), architecture=base.replace(num_hidden_layers=7))  # of --model-config


def test_a_model_to_evaluate_is_refused_before_its_weights_are_read(models, tmp_path, monkeypatch):
    config = load_config(models)
    run = Run(config, read_only=True)
    opened = SimpleNamespace(context=SimpleNamespace(groups=[None], family=family_of(config)))
    monkeypatch.setattr(Run, "_ensure_open", lambda *args, **kwargs: opened)
    monkeypatch.setattr(hf, "load", None)
    with pytest.raises(InputError, match=rf"engine\.max_len of at most 96, the positions of {tmp_path / 'short'}, got 128"):
        run.evaluate_model(tmp_path / "short")
    (tmp_path / "long" / "chat_template.jinja").unlink()
    with pytest.raises(InputError, match="expected a chat template"):
        run.evaluate_model(tmp_path / "long")


def test_whole_experts_are_refused_early_where_adapters_are_needed(models):
    overrides = ["engine.population=2", "search.batch_size=2", "engine.max_len=96"]
    overrides += ["tasks.0.max_new_tokens=32", "tasks.1.max_new_tokens=32"]
    with pytest.raises(InputError, match=r"engine\.population is 2, got whole weights for the expert of task 'mbpp'; set"):
        resolve(load_config(models, overrides))
