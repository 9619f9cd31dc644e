"""Groups of devices: as many as the mesh has and a generation needs."""

from __future__ import annotations

import jax
import pytest

from cycleqd_jax.config import idle_groups, load_config
from cycleqd_jax.models import llama
from cycleqd_jax.models.tokenizer import train_tiny_tokenizer
from cycleqd_jax.runs.devices.groups import device_groups
from cycleqd_jax.types import InputError

pytestmark = pytest.mark.skipif(
    len(jax.devices()) < 8, reason="needs 8 (simulated) devices: set XLA_FLAGS=--xla_force_host_platform_device_count=8"
)


def config_of(*overrides):
    return load_config({"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}]}, overrides)


@pytest.mark.parametrize(
    ("overrides", "groups", "size"),
    [
        ((), 1, 1),
        (("mesh.population=4",), 4, 1),
        (("mesh.population=2", "mesh.tensor=2"), 2, 2),
        (("mesh.population=-1", "mesh.fsdp=2"), 4, 2),
    ],
)
def test_every_group_has_devices_of_its_own(overrides, groups, size):
    lines = []
    found = device_groups(config_of(*overrides), lines.append)
    assert [group.mesh.size for group in found] == [size] * groups
    assert [group.single for group in found] == [size == 1] * groups
    devices = [device for group in found for device in group.mesh.devices.flat]
    assert len(set(devices)) == groups * size
    assert lines == []


def test_groups_without_a_child_are_left_out():
    lines = []
    config = config_of("mesh.population=8", "search.batch_size=3")
    assert len(device_groups(config, lines.append)) == 3
    assert lines == [idle_groups(config, 8)]
    assert lines[0].startswith("5 of 8 groups of devices are idle: search.batch_size is 3; make it larger")


def test_children_that_are_decoded_together_need_one_group():
    experts = {"base": "b", "experts": {"mbpp": "x", "dbbench": "y"}}
    tree = {"name": "demo", "tasks": [{"name": "mbpp"}, {"name": "dbbench"}], "model": experts}
    config = load_config(tree, ["mesh.population=4", "search.batch_size=4", "engine.population=2"])
    assert len(device_groups(config, lambda _: None)) == 2
    assert idle_groups(config, 2) is None


def test_too_few_devices():
    with pytest.raises(InputError, match="population × fsdp × tensor of 8 devices, got 3 × 1 × 4"):
        device_groups(config_of("mesh.population=3", "mesh.tensor=4"), print)


@pytest.mark.parametrize(
    ("overrides", "window"),
    [((), 1), (("engine.drafts=parents",), 8), (("engine.drafts=auto",), 8)],
)
def test_the_engine_of_a_group_verifies_drafts(overrides, window):
    tokenizer = train_tiny_tokenizer(["SELECT a FROM b"] * 4, 300)
    config = config_of(*overrides)
    (group,) = device_groups(config, print)
    model = llama.LlamaConfig(tokenizer.vocab_size, 32, 64, 1, 2, 1, 16, max_position_embeddings=256)
    assert group.engine(model, tokenizer, config.engine).layout.window == window
    assert config.engine.uses_drafts("cuda") == (config.engine.drafts != "none")
    assert config.engine.uses_drafts("tpu") == (config.engine.drafts == "parents")
