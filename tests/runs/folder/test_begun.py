"""A run folder from its first minute on, and what says which models and problems its scores depend on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cycleqd_jax.config import load_config
from cycleqd_jax.report.status import read_status
from cycleqd_jax.runs import Run
from cycleqd_jax.runs.folder.models import recorded_folders
from cycleqd_jax.runs.folder.run_folder import check_folder, check_inputs, compare_inputs
from cycleqd_jax.types import InputError

DEVICE = "cpu 12345678 (fsdp 1 × tensor 1, 24 slots)"


@pytest.fixture
def config(tmp_path):
    tree = {"name": "demo", "output": str(tmp_path / "run"), "tasks": [{"name": "mbpp"}, {"name": "dbbench"}]}
    return load_config({**tree, "cache": str(tmp_path / "cache")})


def test_the_status_of_a_run_whose_models_are_being_trained(config, monkeypatch):
    """The first stage may take hours, and has no scores yet."""
    stages = []
    trainer = SimpleNamespace(train=lambda: stages.append(read_status(config.folder).stage))
    monkeypatch.setattr(Run, "_ensure_open", lambda run, stage: SimpleNamespace(trainer=trainer))
    Run(config).train()
    assert stages == ["train"]
    check_folder(load_config(config.folder / "config.yaml", ["seed=3"]))  # without scores it belongs to no config yet


def test_scores_without_digests_of_models_and_problems_are_refused(config, tmp_path):
    """Otherwise changed experts or problems would be recorded as those of the scores."""
    check_inputs(tmp_path, {"base": "1"}, DEVICE, print)
    (tmp_path / "history.jsonl").touch()
    (tmp_path / "inputs.json").unlink()
    for refused in (
        lambda: compare_inputs(tmp_path, {"base": "2"}),
        lambda: check_inputs(tmp_path, {"base": "2"}, DEVICE, print),
    ):
        with pytest.raises(InputError, match=r"expected the digests .* in .*inputs.json, got no such file .*; restore it"):
            refused()
    assert not (tmp_path / "inputs.json").exists()


@pytest.mark.parametrize("content", ["[]", "3", "null", "{", "[" * 100_000])
def test_damaged_digests_are_one_sentence(config, content):
    config.folder.mkdir()
    (config.folder / "inputs.json").write_text(content)
    with pytest.raises(InputError, match=r"expected the digests of a run's inputs .*inputs.json, got .*; restore the file"):
        recorded_folders(config)
