"""Groups of devices, and what each of them holds: the genome space, and an engine that decodes what is expressed there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cycleqd_jax import genome
from cycleqd_jax.config import EngineConfig, RunConfig
from cycleqd_jax.engine import Engine
from cycleqd_jax.models import llama
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.sharding import groups, make_mesh, shardings
from cycleqd_jax.types import Genome, Params

__all__ = ["Group", "device_groups"]

Space = genome.ExpertSpace | genome.DenseSpace


class Group:
    """One group of devices along the population axis: where its arrays go.

    Attributes:
        mesh: of the group, with all axes.
    """

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def weights(self, config: llama.LlamaConfig) -> Any:
        """Where the weights of a model go (:func:`cycleqd_jax.models.files.hf.load`).

        Raises:
            InputError: the group's axes do not divide the model.
        """
        return shardings(self.mesh, llama.abstract_params(config), llama.logical_axes(config))

    def place(self, params: Params, config: llama.LlamaConfig) -> Params:
        """Weights in this group; what lies there already is not copied."""
        return jax.device_put(params, self._everywhere if self.mesh.size == 1 else self.weights(config))

    def place_space(self, space: Space, config: llama.LlamaConfig) -> Space:
        """A genome space in this group; what lies there already is not copied."""
        if self.mesh.size == 1 or isinstance(space, genome.DenseSpace):
            return jax.device_put(space, self._everywhere)
        return space.shard(self.mesh, self.weights(config))

    def express(self, express: Callable[[Genome], Params]) -> Callable[[Genome], Params]:
        """A space's method, for genomes from anywhere."""
        return lambda genomes: express(jax.device_put(genomes, self._everywhere))

    def engine(self, config: llama.LlamaConfig, tokenizer: ChatTokenizer, options: EngineConfig) -> Engine:
        """An engine in this group; the weights that it is given must lie there.

        Raises:
            InputError: see :class:`~cycleqd_jax.engine.Engine`.
        """
        return Engine(
            config,
            slots=options.slots,
            max_len=options.max_len,
            stop_ids=tokenizer.stop_ids,
            pad_id=tokenizer.pad_id,
            mesh=self.mesh,
            overflow=options.overflow,
        )

    @property
    def _everywhere(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())


def device_groups(config: RunConfig, say: Callable[[str], None]) -> list[Group]:
    """The groups of devices that a run uses: those of its mesh, but for those that would never have a child.

    Args:
        config: of the run.
        say: for single lines: which devices are left alone.

    Raises:
        InputError: the devices that there are do not make the mesh of the config.
    """
    population, fsdp, tensor = config.mesh.sizes
    found = [Group(mesh) for mesh in groups(make_mesh(population=population, fsdp=fsdp, tensor=tensor))]
    batch = math.ceil(config.search.batch_size / config.engine.population)
    if len(found) > batch:
        say(
            f"{len(found) - batch} of {len(found)} groups of devices are idle: search.batch_size is "
            f"{config.search.batch_size}; make it larger, or mesh.population smaller"
        )
    return found[:batch]
