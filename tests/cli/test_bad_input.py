"""Bad input ends with one sentence and exit code 2, before anything is computed or written."""

from __future__ import annotations

import contextlib
import json
import shutil

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from cycleqd_jax.cli import main, stages
from cycleqd_jax.config import load_config
from cycleqd_jax.files import locked
from cycleqd_jax.runs.inputs.models import ModelFolders, model_folders
from cycleqd_jax.runs.inputs.resolve import resolve
from cycleqd_jax.runs.inputs.sandbox import open_sandbox
from cycleqd_jax.runs.inputs.tasks import OpenTasks, open_tasks
from cycleqd_jax.tasks import RecordTask
from cycleqd_jax.tasks.records import by_digest, read_rows
from cycleqd_jax.types import InputError

from .conftest import TASKS, small_config, write_config


def refused(capsys, *argv: str) -> str:
    assert main(list(argv)) == 2
    *before, error = capsys.readouterr().err.splitlines()
    assert error.startswith("cycleqd: ")
    assert all(line.startswith("sandbox: ") for line in before), before
    return error


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("serch.generations=3", "serch"),
        ("search.generatons=3", "search.generations"),
        ("search.generations=many", "search.generations"),
        ("search.generations=-1", "search.generations"),
        ("tasks.0.name=dbbench", "dbbench"),
        ("tasks.0.kind=chess", "chess"),
        ("tasks.0.options.colour=red", "colour"),
        ("tasks=[]", "tasks"),
        ("model.base=/nowhere", "/nowhere"),
        ("tasks.0.train=/nowhere.jsonl", "/nowhere.jsonl"),
        ("genome.mutation=gaussian", "genome.mutation"),
        ("tasks.0.finetune=/nowhere.jsonl", "/nowhere.jsonl"),
        ("engine.max_len=20", "engine.max_len"),
        ("baselines=[finetune_none]", "baselines"),
        ("seed=99999999999999999999", "seed"),
        ("finetune.warmup=1", "finetune.warmup"),
        ("sandbox.isolation=magic", "sandbox.isolation"),
        ("seed", "key=value"),
    ],
)
def test_config(tmp_path, capsys, override, named):
    config = write_config(tmp_path)
    assert named in refused(capsys, "run", str(config), override)
    assert not (tmp_path / "run").exists()


def test_config_file(tmp_path, capsys):
    assert "missing.yaml" in refused(capsys, "run", str(tmp_path / "missing.yaml"))
    (tmp_path / "bad.yaml").write_text("name: [")
    assert "bad.yaml" in refused(capsys, "run", str(tmp_path / "bad.yaml"))


@pytest.mark.e2e
def test_folder_of_another_config(finished, capsys):
    before = {path: path.read_bytes() for path in (finished / "run").rglob("*") if path.is_file()}
    assert "search.generations" in refused(capsys, "run", str(finished / "config.yaml"), "search.generations=3")
    assert "seed" in refused(capsys, "evolve", str(finished / "config.yaml"), "seed=1")
    assert {path: path.read_bytes() for path in (finished / "run").rglob("*") if path.is_file()} == before


def test_folder_of_something_else(tmp_path, capsys):
    config = write_config(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    assert "not a run folder" in refused(capsys, "run", str(config))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


@pytest.mark.e2e
def test_two_at_once(finished, capsys):
    with locked(finished / "run" / ".lock", wait=True):  # other test processes use the run too
        assert "another process" in refused(capsys, "run", str(finished / "config.yaml"))


@pytest.mark.e2e
def test_a_mistake_may_be_corrected(trained, capsys):
    config = str(write_config(trained))
    assert "seed" not in refused(capsys, "evaluate", config, "seed=7", "model.tiny.hidden_size=36")
    assert main(["evolve", config]) == 0


@pytest.mark.e2e
def test_another_file_in_the_place_of_an_input(experts, capsys):
    path, models = experts
    assert main(["evolve", str(path)]) == 0
    capsys.readouterr()
    journal = (path.parent / "run" / "history.jsonl").read_bytes()

    def spoil(weights):
        weights["model.norm.weight"] += 1
        return weights

    change_weights(models["expert-dbbench"], spoil)
    assert main(["evolve", str(path)]) == 2
    assert "expected expert/dbbench with digest" in capsys.readouterr().err
    assert (path.parent / "run" / "history.jsonl").read_bytes() == journal


NO_VALIDATION = {"validation_size": 0}  # for files of a few problems


def mbpp_records(path, numbers):
    lines = [
        {
            "task_id": n,
            "text": f"Return x plus {n}.",
            "code": f"def f(x):\n    return x + {n}",
            "test_setup_code": "",
            "test_list": [f"assert f(1) == {n + 1}"],
            "challenge_test_list": [],
        }
        for n in numbers
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def opened(folder, **changes) -> tuple[OpenTasks, ModelFolders]:
    """Tasks and model folders of a config, as a run opens them."""
    config = load_config(write_config(folder, **changes))
    inputs = resolve(config)
    with open_sandbox(config.sandbox) as sandbox:
        tasks = open_tasks(config, inputs.tasks, sandbox, 2, print)
        return tasks, model_folders(config, {name: data.identity for name, data in tasks.training_data.items()})


@pytest.mark.exhaustive
@pytest.mark.parametrize("halves", [("train", "test"), ("train",), ()])
def test_experts_are_tuned_on_the_file_that_is_named(tmp_path, halves):
    files = {half: mbpp_records(tmp_path / f"{half}.jsonl", range(10 * i, 10 * i + 6)) for i, half in enumerate(halves)}
    files["finetune"] = mbpp_records(tmp_path / "finetune.jsonl", range(50, 54))
    tasks = small_config(tmp_path)["tasks"]
    tasks[0] |= files | NO_VALIDATION | {"test_size": 3}
    config = load_config(write_config(tmp_path, tasks=tasks, export={"method": "aggregate"}))
    with open_sandbox(config.sandbox) as sandbox:
        conversations = open_tasks(config, resolve(config).tasks, sandbox, 2, print).training_data["mbpp"].load()
    assert len(conversations) == 4
    assert all(f"Return x plus {n}." in found[0]["content"] for n, found in zip(range(50, 54), conversations, strict=True))


@pytest.mark.exhaustive
def test_the_task_of_the_finetune_file_is_closed(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(RecordTask, "close", lambda task: closed.append(task))
    tasks = small_config(tmp_path)["tasks"]
    tasks[0]["finetune"] = mbpp_records(tmp_path / "finetune.jsonl", range(50, 54))
    found, _ = opened(tmp_path, tasks=tasks)
    assert not closed
    found.close()
    assert len([task for task in closed if task.name == "mbpp"]) == 2
    tasks[1]["finetune"] = str(tmp_path / "absent.jsonl")
    closed.clear()
    with pytest.raises(InputError, match="absent"):
        opened(tmp_path, tasks=tasks)
    assert len([task for task in closed if task.name == "mbpp"]) == 2


def test_experts_may_not_be_tuned_on_test_problems(tmp_path, capsys):
    data = mbpp_records(tmp_path / "data.jsonl", range(6))
    finetune = mbpp_records(tmp_path / "finetune.jsonl", range(5, 8))
    config = str(write_config(tmp_path))
    sizes = ("tasks.mbpp.train_size=1", "tasks.mbpp.validation_size=1", "tasks.mbpp.test_size=3")
    assert "line 1" in refused(capsys, "run", config, f"tasks.mbpp.train={data}", f"tasks.mbpp.finetune={finetune}", *sizes)


@pytest.mark.exhaustive
def test_experts_may_not_be_tuned_on_validation_problems(tmp_path, capsys):
    train, test = mbpp_records(tmp_path / "train.jsonl", range(6)), mbpp_records(tmp_path / "test.jsonl", range(20, 24))
    files = [f"tasks.mbpp.train={train}", f"tasks.mbpp.test={test}", "tasks.mbpp.train_size=3", "tasks.mbpp.validation_size=2"]
    tasks = small_config(tmp_path)["tasks"]
    tasks[0]["test_size"] = 4
    config = str(write_config(tmp_path, tasks=tasks))
    order = [
        int(row.id) for row in by_digest(read_rows(train))
    ]  # three train problems, two for validation, one that is not used
    finetune = mbpp_records(tmp_path / "finetune.jsonl", [*order[:3], order[5], 50])  # and one that nothing else uses
    other = mbpp_records(tmp_path / "other.jsonl", [50, order[4]])
    error = refused(capsys, "run", config, *files, f"tasks.mbpp.finetune={other}")
    assert "expected different records for fine-tuning and validation, got the same one in" in error
    assert "other.jsonl, line 2" in error
    assert f"train.jsonl, line {order[4] + 1}" in error
    assert not (tmp_path / "run").exists()
    given = load_config(config, [*files, f"tasks.mbpp.finetune={finetune}"])
    with open_sandbox(given.sandbox) as sandbox, contextlib.closing(open_tasks(given, resolve(given).tasks, sandbox, 2, print)):
        pass


def test_too_few_problems_for_the_splits_are_refused(tmp_path, capsys):
    data = mbpp_records(tmp_path / "data.jsonl", range(20))
    config = str(write_config(tmp_path))
    error = refused(capsys, "run", config, f"tasks.mbpp.train={data}", "tasks.mbpp.validation_size=3")
    assert "expected at least 11 train problems for train_size 8 and validation_size 3, got 10 in the train half of" in error
    assert "decrease one of them, or set validation_size: 0 and export.method: best_elite" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
def test_experts_of_half_a_file_and_of_all_of_it_are_not_the_same(tmp_path):
    data, other = mbpp_records(tmp_path / "a.jsonl", range(8)), mbpp_records(tmp_path / "b.jsonl", range(20, 28))
    tasks, export = small_config(tmp_path)["tasks"], {"method": "aggregate"}
    tasks[0] |= {"train": data, "test_size": 4, **NO_VALIDATION}
    half = opened(tmp_path, tasks=tasks, export=export)[1].expert("mbpp")
    tasks[0]["test"] = other
    whole = opened(tmp_path, tasks=tasks, export=export)[1].expert("mbpp")
    assert whole != half
    tasks[0] |= {"train_size": 4, "validation_size": 2}  # experts see what validation leaves
    assert opened(tmp_path, tasks=tasks)[1].expert("mbpp") not in (half, whole)


def test_a_model_to_evaluate_is_refused_before_anything_is_opened(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stages, "Run", None)
    config = str(write_config(tmp_path))
    assert "got no such folder: nowhere" in refused(capsys, "evaluate", config, "--model", "nowhere")
    assert "got another kind of file" in refused(capsys, "evaluate", config, "--model", config)


@pytest.mark.parametrize("key", ["output", "cache"])
def test_folders_that_cannot_be_made(tmp_path, capsys, key):
    assert "/dev/null/x" in refused(capsys, "run", str(write_config(tmp_path)), f"{key}=/dev/null/x")


@pytest.fixture
def experts(finished, tmp_path):
    """A config that names the trained models as folders, which tests may spoil."""
    models = {}
    for folder in (finished / "cache" / "models").iterdir():
        name = folder.name.rsplit("-", 1)[0]
        models[name] = tmp_path / name
        shutil.copytree(folder, models[name])
    config = small_config(tmp_path)
    del config["baselines"]
    config["model"] = {"base": str(models["base"]), "experts": {t: str(models[f"expert-{t}"]) for t in TASKS}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path, models


def change_weights(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.e2e
def test_experts_given_as_folders(experts, finished):
    path, _ = experts
    assert main(["evolve", str(path)]) == 0
    run = json.loads((path.parent / "run" / "history.jsonl").read_text().splitlines()[0])
    assert run["scores"] == json.loads((finished / "run" / "history.jsonl").read_text().splitlines()[0])["scores"]


@pytest.mark.e2e
def test_two_tasks(experts):
    path, _ = experts
    config = yaml.safe_load(path.read_text())
    config["tasks"] = config["tasks"][:2]
    del config["model"]["experts"][TASKS[2]]
    path.write_text(yaml.safe_dump(config))
    assert main(["run", str(path)]) == 0
    results = json.loads((path.parent / "run" / "tables" / "results.json").read_text())
    assert set(results["methods"]["cycleqd"]["test"]) == {*TASKS[:2], "average"}


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda w: {k: v for k, v in w.items() if "norm" not in k}, "norm"),
        (lambda w: {k: v[:-1] if "embed" in k else v for k, v in w.items()}, "embed_tokens"),
        (lambda w: {k: v.astype(np.float16) for k, v in w.items()}, "float16"),
    ],
)
def test_expert_of_another_make(experts, capsys, spoil, named):
    path, models = experts
    change_weights(models["expert-dbbench"], spoil)
    error = refused(capsys, "run", str(path))
    assert named in error
    assert "expert-dbbench" in error
    assert not (path.parent / "run").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_numbers(experts, capsys, value):
    path, models = experts

    def spoil(weights):
        name = next(k for k in weights if "down_proj" in k)
        weights[name].flat[3] = value
        return weights

    change_weights(models["expert-mbpp"], spoil)
    assert "down_proj" in refused(capsys, "evolve", str(path))


@pytest.mark.e2e
def test_fewer_experts_than_tasks(experts, capsys):
    path, _ = experts
    config = yaml.safe_load(path.read_text())
    del config["model"]["experts"]["dbbench"]
    path.write_text(yaml.safe_dump(config))
    assert "dbbench" in refused(capsys, "run", str(path))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("content", "named"), [("", "empty"), ('{"task_id": 1}\n' * 2, "line 1"), ('{"id": 1}\nnot json\n', "line 2")]
)
def test_data(tmp_path, capsys, content, named):
    (tmp_path / "data.jsonl").write_text(content)
    error = refused(capsys, "run", str(write_config(tmp_path)), f"tasks.mbpp.train={tmp_path / 'data.jsonl'}")
    assert "data.jsonl" in error
    assert named in error
    assert not (tmp_path / "run").exists()
