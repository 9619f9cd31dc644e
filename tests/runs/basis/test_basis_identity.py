"""What a basis depends on: the models and keys of a config that make it another one, and the command that shows it."""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import pytest
import yaml

from cycleqd_jax.cli import main
from cycleqd_jax.config import load_config
from cycleqd_jax.runs.basis.decomposition import experts_of
from cycleqd_jax.runs.inputs.models import ModelFolders, Models
from cycleqd_jax.types import InputError


@pytest.fixture
def config_file(tmp_path):
    for name, content in (("base", "{}"), ("a", '{"a": 1}'), ("b", '{"b": 1}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    tree = {
        "name": "given",
        "tasks": [{"name": "mbpp"}, {"name": "dbbench"}],
        "model": {"base": str(tmp_path / "base"), "experts": {"mbpp": str(tmp_path / "a"), "dbbench": str(tmp_path / "b")}},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "config.yaml"


class GivenModels(Models):
    """Models whose weights nobody reads."""

    base: ClassVar = {}
    experts = ()


def identity(file, *overrides, swapped=False):
    config = load_config(file, overrides)
    names = ("a", "b")[:: -1 if swapped else 1]
    folders = {f"expert/{task}": file.parent / name for task, name in zip(config.task_names, names, strict=True)}
    models = GivenModels(config, ModelFolders({"base": file.parent / "base", **folders}, {}), print)
    return experts_of(config, models).identity


def test_what_a_basis_depends_on(config_file):
    plain = identity(config_file)
    assert identity(config_file, "seed=3", "genome.mutation=none", "genome.strength=0.1", "search.generations=9") == plain
    changed = ["genome.rank=4", "genome.method=gram", "genome.densify=true", "model.dtype=bfloat16", "model.vocab_size=300"]
    others = [identity(config_file, change) for change in changed] + [identity(config_file, swapped=True)]
    (config_file.parent / "b" / "config.json").write_text('{"b": 2}')
    others.append(identity(config_file))
    assert len({json.dumps(other) for other in [plain, *others]}) == 8


def test_the_basis_is_of_the_prepared_base(config_file):
    config, folder = load_config(config_file), config_file.parent
    folders = {"base": folder / "base", "expert/mbpp": folder / "a", "expert/dbbench": folder / "b"}
    alone = experts_of(config, GivenModels(config, ModelFolders(folders, {}), print)).identity
    prepared = {**folders, "base": folder / "b", "prepared_base": folder / "base"}
    assert experts_of(config, GivenModels(config, ModelFolders(prepared, {}), print)).identity == alone
    prepared["prepared_base"] = folder / "b"
    assert experts_of(config, GivenModels(config, ModelFolders(prepared, {}), print)).identity["base"] != alone["base"]


def test_the_dense_space_has_no_basis(config_file):
    with pytest.raises(InputError, match=r"expected genome\.space: expert for a basis, got dense, which"):
        identity(config_file, "genome.space=dense")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["genome.method=randomized"], "expected genome.rank with genome.method: randomized, got null"),
        (["genome.method=qr"], "expected genome.method to be one of svd, gram, randomized, got 'qr'"),
    ],
)
def test_configs_that_make_no_sense(config_file, overrides, message):
    with pytest.raises(InputError, match=message):
        load_config(config_file, overrides)


@pytest.mark.e2e
def test_the_command(finished, trained, capsys):
    tree = yaml.safe_load((finished / "config.yaml").read_text("utf-8"))
    tree |= {"output": str(trained / "run"), "cache": str(trained / "cache")}
    (trained / "config.yaml").write_text(yaml.safe_dump(tree))
    assert main(["basis", str(trained / "config.yaml"), "--json"]) == 0
    shown = capsys.readouterr().out
    facts = json.loads(shown[shown.index("{\n") :])
    in_run = json.loads((finished / "run" / "tables" / "basis.json").read_text("utf-8"))
    assert {**facts, "store": ""} == {**in_run, "store": ""}  # the run before had made it
    assert facts == json.loads((trained / "run" / "tables" / "basis.json").read_text("utf-8"))
    assert facts["experts"] == ["mbpp", "dbbench", "os_interaction"]
    assert {"embed_tokens", "layers/attn/q", "layers/mlp/down"} <= facts["leaves"].keys()
    assert all(leaf["retained"]["min"] > 1 - 1e-5 for leaf in facts["leaves"].values())
    for name, least in (("singular_values", 0.9), ("task_vectors", -1)):  # spectra are alike, directions need not be
        table = np.asarray(facts["similarity"][name])
        np.testing.assert_allclose(np.diag(table), 1, atol=1e-6)
        np.testing.assert_array_equal(table, table.T)
        assert np.all((least < table) & (table < 1) | np.eye(3, dtype=bool))
    stores = set((trained / "cache" / "basis").iterdir())
    # another rank is another basis; the run folder has no scores yet and may still change its mind
    assert main(["basis", str(trained / "config.yaml"), "genome.rank=8", "genome.method=randomized"]) == 0
    shown, lines = capsys.readouterr()
    assert "bit for bit" not in lines
    assert "randomized, 8 directions of every matrix" in shown
    assert "mbpp and dbbench: " in shown
    assert len(set((trained / "cache" / "basis").iterdir()) - stores) == 1
