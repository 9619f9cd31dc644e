"""Memory, FLOPs and bytes of the stages of a run of Segment Anything, from the shapes of its model.

The formulas of models and genomes are those of :mod:`cycleqd_jax.plan.estimate`. Leaves that no expert changes have no basis.
The others:

- Embed: where the image encoder is frozen, every group embeds every image once for all its models, and the embeddings stay in
  the host's memory. Otherwise every child embeds its images.
- Segment: prompt encoder and mask decoder for every image of a child.
- FLOPs are those of the matrix products and convolutions of one image. The weights are read once for each batch.
- Temporaries: eight times the operands and the result of a batch's largest product or convolution. XLA's CPU compiler takes 1.6
  to 6.6 times these bytes in float32, for MobileSAM, ViT-B and ViT-H. A ViT holds its layers twice while it runs.

A group has one device, which has whole models.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cycleqd_jax.config import RunConfig
from cycleqd_jax.models import sam
from cycleqd_jax.plan.compiled import Program, compile_program, genome_programs, topology
from cycleqd_jax.plan.device import DEVICES, Device
from cycleqd_jax.plan.estimate import Stage
from cycleqd_jax.plan.flops import largest_product, product_flops
from cycleqd_jax.plan.memory import GenomeMemory
from cycleqd_jax.plan.mesh import fits
from cycleqd_jax.plan.seconds import GenomeSeconds
from cycleqd_jax.plan.workload import GenomeWorkload, genome_fields
from cycleqd_jax.sharding import make_mesh
from cycleqd_jax.types import Params, Split

__all__ = [
    "ImageWorkload",
    "compile_images",
    "decoder_flops",
    "encoder_flops",
    "estimate_images",
    "image_alternatives",
    "image_functions",
    "image_workload",
    "segment_seconds",
    "temporaries",
]

CACHE_BYTES = 4 << 30
"""Host memory for embeddings, the default of the predictor; those of further images are computed for every model."""

_TIMES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageWorkload(GenomeWorkload):
    """What is to be computed with models that segment images.

    Attributes:
        batch: images per call.
        images: images that a child of the search is scored on.
        all_images: images of all splits.
    """

    model: sam.SamConfig
    batch: int
    images: int
    all_images: int

    @property
    def shares_encoder(self) -> bool:
        """Whether no expert changes the image encoder."""
        return "vision/" in self.frozen

    @property
    def embedding(self) -> int:
        """Bytes of the embedding of one image."""
        vision = self.model.vision
        return vision.grid**2 * vision.output_channels * jnp.dtype(self.model.dtype).itemsize

    @property
    def kept(self) -> int:
        """Images whose embeddings are kept."""
        return min(self.all_images, CACHE_BYTES // self.embedding) if self.shares_encoder else 0


def image_workload(run: RunConfig, model: sam.SamConfig, sizes: Mapping[Split, Sequence[int]]) -> ImageWorkload:
    """The workload of a config of image tasks.

    Args:
        run: the config.
        model: base and experts, with the dtype in which they are evaluated.
        sizes: by split, the number of images of every task.

    Raises:
        InputError: the genome space is not ``expert``, or the search method works on coefficients.
    """
    whole = run.mask_options.trained == "all"
    return ImageWorkload(
        **genome_fields(run),
        model=model,
        frozen=() if whole else ("vision/", "prompt/"),
        batch=run.mask_options.batch_size,
        images=sum(sizes["train"]),
        all_images=sum(map(sum, sizes.values())),
    )


def estimate_images(work: ImageWorkload, population: int, device: Device) -> list[Stage]:
    """What every stage needs: load, basis, embed (where the encoder is frozen), express, segment.

    Args:
        work: what is to be computed.
        population: groups of one device.
        device: the kind of device.
    """
    memory = GenomeMemory(work, (population, 1, 1), "cpu" if device.chip is None else "gpu")
    seconds = GenomeSeconds(memory, device)
    weights, stored = float(memory.weights), float(memory.stored_bases)
    experts = {"base": weights, "experts": float(work.experts * memory.weights)}
    one_matrix = max((memory.decompose_memory(leaf) for leaf in memory.decomposed), default=0)
    held = {
        "base": weights,
        "experts": float(memory.experts),
        "frozen leaves of experts": experts["experts"] - memory.experts,
        "bases": float(memory.bases),
        "archives": float(memory.archives),
    }
    child = {**held, "child": weights}
    encode, decode = temporaries(work.model, work.batch)
    kept = float(population * work.kept * work.embedding)  # every group has embeddings of its own
    files = (work.experts + 1) * memory.whole_weights
    stacked = max(leaf.local for leaf in memory.leaves) * memory.itemsize  # the host holds one stack at a time
    stages = [
        Stage("load", experts, stacked, files, files / device.disk),
        Stage("basis", {**experts, "temporaries": float(one_matrix)}, stored, stored, seconds.basis()),
        Stage("express", {**child, "temporaries": float(memory.express_temporaries)}, 0, 0, seconds.express()),
        Stage(
            "segment",
            {**child, "temporaries": float(decode if work.kept == work.all_images else max(encode, decode))},
            kept,
            work.keep * memory.archives + memory.whole_weights,
            segment_seconds(work, work.images, device),
        ),
    ]
    if work.shares_encoder:
        encoding = work.kept * encoder_flops(work.model) / _rate(work, device)
        stages.insert(2, Stage("embed", {**child, "temporaries": float(encode)}, kept, 0, encoding))
    if not device.shares_host:
        return stages
    return [dataclasses.replace(s, device={**s.device, "host": s.host / population}) if s.host else s for s in stages]


@functools.cache
def temporaries(model: sam.SamConfig, batch: int) -> tuple[int, int]:
    """Bytes that embedding and segmenting a batch of images need beside weights and results."""
    encode, decode = (_TIMES * largest_product(*given) for given in image_functions(model, batch))
    layers = jax.tree.leaves(sam.abstract_params(model)["vision"]["layers"]) if isinstance(model.vision, sam.VitConfig) else []
    return encode + sum(leaf.size * leaf.dtype.itemsize for leaf in layers), decode


def segment_seconds(work: ImageWorkload, images: int, device: Device) -> float:
    """Seconds of one model for some images, at the device's limits.

    Args:
        work: what is to be computed.
        images: how many; where the encoder is frozen, the share whose embeddings are kept is not embedded again.
        device: whose limits.
    """
    embedded = 1 - work.kept / work.all_images if work.all_images else 0.0
    shapes = {name: part for name, part in sam.abstract_params(work.model).items() if embedded or name != "vision"}
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    flops = images * (decoder_flops(work.model) + embedded * encoder_flops(work.model))
    return max(flops / _rate(work, device), math.ceil(images / work.batch) * weights / device.bandwidth)


def _rate(work: ImageWorkload, device: Device) -> float:
    return device.half if work.model.dtype != "float32" else device.single


@functools.cache
def decoder_flops(model: sam.SamConfig) -> int:
    """FLOPs of prompt encoder and mask decoder for one image with one prompt."""
    return product_flops(*image_functions(model, 1)[1])


@functools.cache
def encoder_flops(model: sam.SamConfig) -> int:
    """FLOPs of the image encoder for one image."""
    return product_flops(*image_functions(model, 1)[0])


def image_functions(model: sam.SamConfig, batch: int) -> tuple[tuple[Callable[..., Any], Any, Any], tuple[Any, ...]]:
    """The functions that embed and segment a batch of images, each with the shapes of its arguments."""
    params, side = sam.abstract_params(model), model.vision.image_size

    def encode(params: Params, pixels: jax.Array) -> jax.Array:
        return sam.encode_images(params, model, pixels)

    def decode(params: Params, embeddings: jax.Array, boxes: jax.Array) -> jax.Array:
        return sam.predict_masks(params, model, embeddings, sam.Prompts(boxes=boxes))[0]

    pixels = jax.ShapeDtypeStruct((batch, side, side, model.vision.num_channels), jnp.float32)
    vision, rest = {"vision": params["vision"]}, {name: params[name] for name in ("prompt", "decoder")}
    embeddings = jax.eval_shape(encode, vision, pixels)
    return (encode, vision, pixels), (decode, rest, embeddings, jax.ShapeDtypeStruct((batch, 1, 4), jnp.float32))


def image_alternatives(work: ImageWorkload, population: int, device: Device) -> list[str]:
    """Changes that would make a plan fit, each alone: fewer images per call, another dtype, other devices."""

    def works(changed: ImageWorkload = work, kind: Device = device) -> bool:
        return fits(estimate_images(changed, population, kind), kind)

    sizes = (2**k for k in range(work.batch.bit_length(), -1, -1) if 2**k < work.batch)
    smaller = next((size for size in sizes if works(dataclasses.replace(work, batch=size))), None)
    found = [] if smaller is None else [f"masks.batch_size={smaller}"]
    if work.model.dtype == "float32" and works(dataclasses.replace(work, model=work.model.replace(dtype="bfloat16"))):
        found.append("model.dtype=bfloat16")
    larger = (kind for kind in DEVICES.values() if kind.memory > 1.05 * device.memory)
    return [*found, *(f"--device {kind.name}" for kind in larger if works(kind=kind))]


def compile_images(work: ImageWorkload, device: Device) -> list[Program]:
    """Compiles the programs of all stages for one device.

    Args:
        work: what is to be computed.
        device: the kind of device.

    Raises:
        InputError: see :func:`~cycleqd_jax.plan.topology`.
    """
    mesh = make_mesh(fsdp=1, tensor=1, devices=topology(device, 1))
    compiled = functools.partial(compile_program, "cpu" if device.chip is None else "cuda")
    place = NamedSharding(mesh, P())

    def placed(tree: Any) -> Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

    stages = ("embed" if work.shares_encoder else "segment", "segment")
    names = (f"embed, {work.batch} images", f"segment, {work.batch} images")
    functions = image_functions(work.model, work.batch)
    found = genome_programs(work, mesh, compiled)
    for stage, name, (function, *arguments) in zip(stages, names, functions, strict=True):
        found.append(compiled(stage, name, jax.jit(function), *map(placed, arguments)))
    return found
