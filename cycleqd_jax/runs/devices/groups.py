"""Groups of devices, and what each of them holds: a genome space, and an engine that decodes the models expressed there."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cycleqd_jax import sharding
from cycleqd_jax.compilation import device_kind
from cycleqd_jax.config import EngineConfig, RunConfig, idle_groups
from cycleqd_jax.engine import Engine
from cycleqd_jax.engine.attention import check_kv_cache_dtype
from cycleqd_jax.engine.layout import WINDOW
from cycleqd_jax.genome import CoefficientSpace, DenseSpace, ExpertSpace
from cycleqd_jax.models import llama, sam
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.runs.devices.mirror import Mirror
from cycleqd_jax.runs.devices.mirrored_engine import MirroredEngine
from cycleqd_jax.types import Genome, Params

__all__ = ["Architecture", "DeviceGroup", "Space", "device_groups"]

Architecture = llama.LlamaConfig | sam.SamConfig
"""The config of a model."""

Space = ExpertSpace | CoefficientSpace | DenseSpace


class DeviceGroup:
    """One group of devices along the population axis of the mesh.

    Attributes:
        mesh: the mesh of the group, with all axes.
        mirror: makes the calls of a group that spans several processes in all of them; None where it spans one.
    """

    def __init__(self, mesh: Mesh, mirror: Mirror | None = None) -> None:
        self.mesh = mesh
        self.mirror = mirror

    @property
    def single(self) -> bool:
        """Whether the group is one device."""
        return self.mesh.size == 1

    def describe(self, slots: int) -> str:
        """On what scores are computed: all on which their last bits depend."""
        sizes = " × ".join(f"{name} {self.mesh.shape[name]}" for name in ("fsdp", "tensor"))
        return f"{device_kind()} ({sizes}, {slots} slots)"

    def weight_shardings(self, config: Architecture) -> Any:
        """Shardings of a language model's weights in this group; a config of other models has no group of several devices.

        Raises:
            InputError: the group's axes do not divide the model.
        """
        assert isinstance(config, llama.LlamaConfig)
        return sharding.shardings(self.mesh, llama.abstract_params(config), llama.logical_axes(config))

    def place(self, params: Params, config: Architecture) -> Params:
        """Weights in this group; arrays that are already there are not copied."""
        return sharding.put(params, self._replicated if self.single else self.weight_shardings(config))

    def place_space(self, space: Space, config: Architecture) -> Space:
        """A genome space in this group; arrays that are already there are not copied."""
        if self.single or isinstance(space, DenseSpace):
            return jax.device_put(space, self._replicated)
        return space.shard(self.mesh, self.weight_shardings(config))

    def express(self, express: Callable[[Genome], Params]) -> Callable[[Genome], Params]:
        """``space.express`` for genomes on any device."""
        return lambda genomes: express(sharding.put(genomes, self._replicated))

    def engine(self, config: llama.LlamaConfig, tokenizer: ChatTokenizer, options: EngineConfig) -> Engine:
        """An engine in this group; its weights must lie there.

        Raises:
            InputError: see :class:`~cycleqd_jax.engine.Engine`.
        """
        drafts = options.uses_drafts(self.mesh.devices.flat[0].platform)
        make: Callable[..., Engine] = Engine
        if self.mirror is not None:
            make = functools.partial(MirroredEngine, mirror=self.mirror, place=lambda params: self.place(params, config))
        return make(
            config,
            slots=options.slots,
            max_len=options.max_len,
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
            mesh=self.mesh,
            window=min(WINDOW, options.max_len) if drafts else 1,
            overflow=options.overflow,
            kv_cache_dtype=options.kv_cache_dtype,
        )

    @property
    def _replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())


def device_groups(config: RunConfig, log: Callable[[str], None], mirror: Mirror | None = None) -> list[DeviceGroup]:
    """The groups of devices that a run uses; groups that could never get a child are left out.

    Args:
        config: the config of the run.
        log: called with a line that names the number of idle groups.
        mirror: the mirror of a distributed run, whose group has the devices of all processes.

    Raises:
        InputError: the devices of this process do not form the mesh of the config, or do not have its ``kv_cache_dtype``.
    """
    population, fsdp, tensor = config.mesh.sizes
    mesh = sharding.make_mesh(population=population, fsdp=fsdp, tensor=tensor)
    check_kv_cache_dtype(config.engine.kv_cache_dtype, mesh.devices.flat[0].platform)
    found = [DeviceGroup(part, mirror) for part in sharding.device_groups(mesh)]
    if (note := idle_groups(config, len(found))) is not None:
        log(note)
    return found[: config.search.together(config.engine.population)]
