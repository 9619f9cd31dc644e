"""The run folder: which runs may continue in it, and what is recorded of their inputs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import yaml

from cycleqd_jax.config import GradientConfig, PrepareConfig, RayConfig, load_config
from cycleqd_jax.report.folder import RunFolder
from cycleqd_jax.runs.folder import run_folder as module
from cycleqd_jax.runs.folder.run_folder import check_folder, check_inputs, claim_folder, compare_inputs, versions
from cycleqd_jax.schema import SCHEMA
from cycleqd_jax.types import InputError

DEVICE = "cpu 12345678 (fsdp 1 × tensor 1, 24 slots)"


def changed(config, **search):
    return dataclasses.replace(config, search=dataclasses.replace(config.search, **search))


def begin(config):
    claim_folder(config)
    (config.folder / "history.jsonl").touch()
    (config.folder / "tables").mkdir()
    for name in ("results.json", "selection.json"):
        (config.folder / "tables" / name).write_text("{}")


def test_a_claimed_folder_holds_the_config_and_the_versions(config):
    claim_folder(config)
    stored = yaml.safe_load((config.folder / "config.yaml").read_text())
    assert stored.pop("versions") == versions()
    assert stored.pop("schema") == SCHEMA
    assert load_config(stored) == config


def test_without_scores_another_config_claims_the_folder(config):
    claim_folder(config)
    other = changed(config, bins=7)
    check_folder(other)
    claim_folder(other)
    assert load_config(config.folder / "config.yaml") == other


def test_a_run_that_continues_keeps_its_files(config):
    begin(config)
    before = (config.folder / "config.yaml").read_bytes()
    claim_folder(config)
    assert (config.folder / "config.yaml").read_bytes() == before
    assert (config.folder / "tables" / "results.json").exists()


def test_more_generations_remove_the_results_and_change_nothing_else(config, monkeypatch):
    begin(config)
    first = yaml.safe_load((config.folder / "config.yaml").read_text())
    monkeypatch.setattr(module, "versions", lambda: {"jax": "another"})
    more = dataclasses.replace(changed(config, generations=9), baselines=("finetune_all",))
    check_folder(more)
    claim_folder(more)
    first["search"]["generations"] = 9
    first["baselines"] = ["finetune_all"]  # the table has a row for it
    assert not (config.folder / "tables" / "selection.json").exists()
    assert yaml.safe_load((config.folder / "config.yaml").read_text()) == first
    assert not (config.folder / "tables" / "results.json").exists()


def test_more_generations_remove_what_was_drawn_of_fewer(config):
    begin(config)
    stale = (
        "transcripts/cycleqd-test.jsonl", "figures/curves.svg", "report.html", "tables/results.md", "tables/costs.json",
        "tables/suite-s.md", "tables/suite-damaged.json",
    )  # fmt: skip
    kept = ("model/README.md", "tables/basis.json", "checkpoints/3/x", "history.jsonl")
    for name in (*stale, *kept):
        (config.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (config.folder / name).touch()
    claim_folder(config)
    assert all((config.folder / name).exists() for name in stale)
    claim_folder(changed(config, generations=9))
    assert not any((config.folder / name).exists() for name in stale)
    assert all((config.folder / name).exists() for name in kept)


def test_more_generations_keep_the_rows_of_a_suite_that_do_not_depend_on_the_search(config):
    begin(config)
    rows = {"base": {"key": None, "scores": {"arc": 0.5}}, "cycleqd_selected": {"key": ["elite", [4]], "scores": {"arc": 0.6}}}
    file = config.folder / "tables" / "suite-s.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"title": "s", "rows": rows}))
    claim_folder(changed(config, generations=9))
    assert json.loads(file.read_text()) == {"title": "s", "rows": {"base": rows["base"]}}


def test_config_yaml_has_the_rows_and_the_export_of_the_last_command(config):
    begin(config)
    export = dataclasses.replace(config.export, method="soup")
    other = dataclasses.replace(config, export=export, gradient=GradientConfig(steps=7), merges=("ties",), cache="elsewhere")
    check_folder(other)
    claim_folder(other)
    assert load_config(config.folder / "config.yaml") == dataclasses.replace(other, cache=config.cache)
    assert (config.folder / "tables" / "results.json").exists()


@pytest.mark.parametrize(("key", "value"), [("bins", 7), ("generations", 4), ("batch_size", 2)])
def test_a_folder_with_scores_of_another_config_is_refused(config, key, value):
    begin(config)
    before = getattr(config.search, key)
    with pytest.raises(InputError, match=f"expected search.{key} {before}, as in the run in .*, got {value}; choose another"):
        check_folder(changed(config, **{key: value}))


@pytest.mark.parametrize(("key", "value"), [("retries", 0), ("deadline", 60.0), ("max_failures", None)])
def test_what_a_run_does_about_failures_may_change(config, key, value):
    begin(config)
    check_folder(changed(config, **{key: value}))


def test_the_workers_of_a_cluster_may_change(config):
    begin(config)
    check_folder(dataclasses.replace(config, ray=RayConfig("auto", workers=31)))


def test_a_folder_from_before_there_were_methods_continues(config):
    begin(config)
    path = config.folder / "config.yaml"
    old = yaml.safe_load(path.read_text())
    for key in module.LATER:
        section, _, name = key.partition(".")
        del (old[section] if name else old)[name or section]
    del old["origin"]
    path.write_text(yaml.safe_dump(old))
    check_folder(config)
    with pytest.raises(InputError, match=r"expected search.method 'cycleqd', as in the run in .*, got 'qd'; choose another"):
        check_folder(changed(config, method="qd"))
    with pytest.raises(InputError, match=r"expected origin None, as in the run in .*, got 'runs/x'; choose another"):
        check_folder(dataclasses.replace(config, origin="runs/x"))
    with pytest.raises(InputError, match=r"expected search.budget None, as in the run in .*, got 50; choose another"):
        check_folder(changed(config, budget=50))


def test_a_run_with_a_prepared_base_continues(config):
    prepared = dataclasses.replace(config, model=dataclasses.replace(config.model, prepare=PrepareConfig(steps=7)))
    begin(prepared)
    check_folder(prepared)
    check_folder(dataclasses.replace(prepared, gradient=GradientConfig(groups=2)))  # one more row of the table
    with pytest.raises(InputError, match=r"expected model.prepare {steps: 7, …}, as in the run in .*, got None; choose"):
        check_folder(config)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, prepare=PrepareConfig(steps=8)))
    with pytest.raises(InputError, match=r"expected model.prepare.steps 7, as in the run in .*, got 8; choose another"):
        check_folder(other)


def test_a_base_is_not_prepared_later(config):
    begin(config)
    prepared = dataclasses.replace(config, model=dataclasses.replace(config.model, prepare=PrepareConfig(steps=7)))
    with pytest.raises(InputError, match=r"expected model.prepare None, as in the run in .*, got {steps: 7, …}; choose"):
        check_folder(prepared)


@pytest.mark.parametrize(
    ("task", "experts", "harmless"),
    [
        ({}, None, True),  # generated problems: the next ones of the pool
        ({"train": "a.jsonl"}, {"mbpp": "m", "dbbench": "d"}, True),
        ({"train": "a.jsonl", "finetune": "b.jsonl"}, None, True),
        ({"train": "a.jsonl"}, None, False),  # the experts were fine-tuned on them
        ({"train": "a.jsonl", "train_size": None}, {"mbpp": "m", "dbbench": "d"}, False),  # the search scored on them
    ],
)
def test_a_folder_from_before_there_was_validation(tmp_path, task, experts, harmless):
    tree = {
        "name": "demo",
        "output": str(tmp_path / "run"),
        "tasks": [{"name": "mbpp", **task}, {"name": "dbbench"}],
        "model": {"base": "base" if experts else None, "experts": experts},
    }
    config = load_config(tree)
    begin(config)
    path = config.folder / "config.yaml"
    old = yaml.safe_load(path.read_text())
    del old["export"]
    for one in old["tasks"]:
        del one["validation_size"]
    path.write_text(yaml.safe_dump(old))
    if harmless:
        check_folder(config)
    else:
        with pytest.raises(
            InputError, match=r"expected tasks\.0\.validation_size 0, as in the run in .*, got 32; choose another"
        ):
            check_folder(config)
    tree["tasks"][0]["validation_size"] = 0
    check_folder(load_config(tree, ["export.method=aggregate"]))
    with pytest.raises(InputError, match=r"expected export\.elites 8, as in the run"):
        check_folder(load_config(tree, ["export.method=aggregate", "export.elites=3"]))


@pytest.mark.parametrize(
    "content", [b"[" * 5000, b"a: 2020-13-45", b"? [1]\n: 2", b"\xff", b"a: [", b"- 1", b"a: &a [*a]", b"a: 1\na: 2", b""]
)
def test_a_config_that_can_not_be_read_is_one_sentence(config, content):
    begin(config)
    (config.folder / "config.yaml").write_bytes(content)
    for refused in (lambda: check_folder(config), lambda: RunFolder(config.folder).config):
        with pytest.raises(InputError, match=r"config.yaml") as caught:
            refused()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", ["x", "null", "[5]", "9.5"])
def test_generations_that_are_no_number_are_another_config(config, value):
    begin(config)
    file = config.folder / "config.yaml"
    file.write_text(file.read_text().replace("generations: 5", f"generations: {value}"))
    with pytest.raises(InputError, match=r"expected search\.generations .*, as in the run in .*, got 5; choose another output"):
        check_folder(config)


def test_the_method_of_export_may_change(config):
    begin(config)
    check_folder(dataclasses.replace(config, export=dataclasses.replace(config.export, method="soup")))


def test_a_folder_that_is_no_run_is_refused(config):
    config.folder.mkdir()
    (config.folder / ".lock").touch()
    check_folder(config)
    (config.folder / "thesis.tex").touch()
    with pytest.raises(InputError, match="got something that is not a run folder; choose another output"):
        check_folder(config)


def test_inputs_are_recorded_once_and_compared_afterwards(tmp_path):
    inputs = {"base": "1234", "mbpp/train": "5678"}
    lines = []
    check_inputs(tmp_path, inputs, DEVICE, lines.append)
    assert json.loads((tmp_path / "inputs.json").read_text()) == inputs | {
        "schema": SCHEMA,
        "devices": [DEVICE],
        "versions": versions(),
    }
    check_inputs(tmp_path, inputs, DEVICE, lines.append)
    assert lines == []
    with pytest.raises(InputError, match=r"expected mbpp/train with digest 5678, as when the run .* began, got 9; restore it"):
        check_inputs(tmp_path, inputs | {"mbpp/train": "9"}, DEVICE, lines.append)


def test_other_devices_get_a_warning(tmp_path):
    lines, other = [], "gpu NVIDIA H100 (fsdp 1 × tensor 1, 24 slots)"
    for device in (DEVICE, DEVICE, other, DEVICE):
        check_inputs(tmp_path, {}, device, lines.append)
    assert [line.partition(", so it")[0] for line in lines] == [
        f"warning: scores of this run were computed on {first}; this start computes them on {second}"
        for first, second in ((DEVICE, other), (other, DEVICE))
    ]
    recorded = json.loads((tmp_path / "inputs.json").read_text())
    assert recorded.pop("devices") == [DEVICE, other]
    (tmp_path / "inputs.json").write_text(json.dumps(recorded))  # of an older version
    for device in (DEVICE, other):
        check_inputs(tmp_path, {}, device, lines.append)
    assert len(lines) == 3


def moved(folder, place, **changes):
    """A config whose base, expert and problems lie in a folder."""
    task = {"name": "mbpp", "train": f"{place}/train.jsonl", "test": f"{place}/test.jsonl", "train_size": 4}
    experts = {"mbpp": f"{place}/one", "dbbench": f"{place}/two"}
    model = {"base": f"{place}/base", "experts": experts}
    tasks = [task | changes.pop("task", {}), {"name": "dbbench"}]
    return load_config({"name": "demo", "output": str(folder / "run"), "tasks": tasks, "model": model | changes})


def test_files_of_a_run_may_move(tmp_path):
    first, second = moved(tmp_path, "/first"), moved(tmp_path, "/second")
    begin(first)
    with pytest.raises(InputError, match=r"expected model.base '/first/base', as in the run"):
        check_folder(second)  # nothing says yet what they have held
    (first.folder / "inputs.json").write_text(json.dumps({"base": "1", "versions": {}}))
    check_folder(second)
    claim_folder(second)
    assert load_config(first.folder / "config.yaml") == second
    with pytest.raises(InputError, match=r"expected base with digest 1, as when the run in .* began, got 2"):
        compare_inputs(first.folder, {"base": "2"})
    with pytest.raises(InputError, match=r"expected tasks.0.test '/second/test.jsonl', as in the run in .*, got None"):
        check_folder(moved(tmp_path, "/second", task={"test": None}))
    with pytest.raises(InputError, match=r"expected tasks.0.train_size 4, as in the run in .*, got 5"):
        check_folder(moved(tmp_path, "/third", task={"train_size": 5}))


def test_meshes_and_slots_may_change(config):
    begin(config)
    mesh, engine = dataclasses.replace(config.mesh, tensor=2), dataclasses.replace(config.engine, slots=2)
    check_folder(dataclasses.replace(config, mesh=mesh, engine=engine))
    with pytest.raises(InputError, match=r"expected engine.max_len"):
        check_folder(dataclasses.replace(config, engine=dataclasses.replace(config.engine, max_len=77)))


def test_other_versions_get_a_warning(tmp_path, monkeypatch):
    lines = []
    check_inputs(tmp_path, {}, DEVICE, lines.append)
    before = versions()
    monkeypatch.setattr(module, "versions", lambda: before | {"jax": "99"})
    check_inputs(tmp_path, {}, DEVICE, lines.append)
    (line,) = lines
    assert line.startswith("warning: versions changed since this run began")
    assert line.endswith(f"bit for bit: jax {before['jax']} → 99")


def test_inputs_of_a_run_without_scores_are_not_compared(config):
    claim_folder(config)
    check_inputs(config.folder, {"base": "1"}, DEVICE, print)
    compare_inputs(config.folder, {"base": "2"})
    claim_folder(config)
    check_inputs(config.folder, {"base": "2"}, DEVICE, print)
    (config.folder / "history.jsonl").touch()
    compare_inputs(config.folder, {})
    with pytest.raises(InputError, match=r"expected base with digest 2, as when the run .* began, got 3"):
        compare_inputs(config.folder, {"base": "3"})


def test_what_a_killed_start_leaves_is_no_foreign_folder(config):
    (config.folder / "checkpoints" / "0.orbax-checkpoint-tmp").mkdir(parents=True)
    (config.folder / "tables").mkdir()
    (config.folder / "tables" / "basis.json").touch()
    (config.folder / "inputs.json").touch()
    check_folder(config)
    (config.folder / "checkpoints" / "12").mkdir()
    with pytest.raises(InputError, match="which has checkpoints/12, got something that is not a run folder"):
        check_folder(config)


KILLED = """
import dataclasses, json, os, sys
from pathlib import Path
from cycleqd_jax.config import GradientConfig, PrepareConfig, RayConfig, load_config
from cycleqd_jax.files import locked, make_folder, write_json
from cycleqd_jax.individual import Individual
from cycleqd_jax.runs.folder.run_folder import check_folder, check_inputs, claim_folder, compare_inputs
from cycleqd_jax.search import Checkpoints, Journal

first = load_config(json.loads(sys.argv[1]))
second = dataclasses.replace(first, seed=first.seed + 1)

def start(config, inputs):
    check_folder(config)
    make_folder(config.folder)
    with locked(config.folder / ".lock", wait=False):
        compare_inputs(config.folder, inputs)
        claim_folder(config)
        check_inputs(config.folder, inputs, "cpu", print)
        write_json(config.folder / "tables" / "basis.json", {})
        Checkpoints(config.folder / "checkpoints").close()
        write_json(config.folder / "grid.json", {})
        expert = Individual(0, -1, "mbpp", None, parents=(-1, -1), omega=None, key=None)
        Journal(config.folder / "history.jsonl").append(dataclasses.replace(expert, error="none"))

def child(kill, config, inputs):
    left = [kill]
    def hook(event, args):
        if event.startswith(("open", "os.", "shutil.", "fcntl.")) and any(str(config.folder) in str(x) for x in args):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)
    if (pid := os.fork()) == 0:
        if kill:
            sys.addaudithook(hook)
        start(config, inputs)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

kills = 0
while child(kills + 1, first, {"base": "1"}) == 9:
    kills += 1
    begun = (first.folder / "history.jsonl").exists()
    assert child(0, first if begun else second, {"base": "1" if begun else "2"}) == 0, kills
    import shutil
    shutil.rmtree(first.folder)
print(kills)
"""


@pytest.mark.exhaustive
def test_a_run_killed_at_any_instant_of_its_start_can_be_started_again(tmp_path):
    tree = {
        "name": "demo",
        "output": str(tmp_path / "run"),
        "cache": str(tmp_path),
        "tasks": [{"name": "mbpp"}, {"name": "dbbench"}],
    }
    done = subprocess.run([sys.executable, "-c", KILLED, json.dumps(tree)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 15
