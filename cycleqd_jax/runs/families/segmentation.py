"""Segment Anything, which segments the images of all tasks from boxes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cycleqd_jax import operators, training
from cycleqd_jax.config import ModelConfig, RunConfig, TrainConfig
from cycleqd_jax.evaluation import SegmentationEvaluator
from cycleqd_jax.models import sam
from cycleqd_jax.models.sam.embeddings import EmbeddingFolder
from cycleqd_jax.models.sam.predictor import SamPredictor
from cycleqd_jax.plan import decoder_flops, encoder_flops
from cycleqd_jax.runs.devices.groups import Architecture, DeviceGroup
from cycleqd_jax.runs.families.base import Processor, sizes_of, train_options
from cycleqd_jax.runs.faults import halve_batch, known_slots
from cycleqd_jax.types import Params, Progress

__all__ = ["SegmentAnything"]


class SegmentAnything:
    """The family of Segment Anything; see :class:`~cycleqd_jax.runs.families.Family`."""

    pipeline = "mask-generation"
    unit = "images"

    def processor(self, model: str | Path) -> Processor:
        """The folder whose processor files are copied to folders of merged models."""
        return Path(model)

    def check_model(self, model: str | Path, run: RunConfig) -> None:
        """Checks config and headers."""
        sam.read_config(model)

    def load(
        self,
        folder: str | Path,
        options: ModelConfig,
        *,
        like: Architecture | None = None,
        shardings: Callable[[Any], Any] | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> tuple[Architecture, Params]:
        """Reads a model."""
        return sam.load(folder, dtype=options.dtype, shardings=shardings)

    def save(
        self, folder: str | Path, config: Architecture, params: Params, processor: Processor, card: str | None = None
    ) -> None:
        """Writes a folder that transformers' ``SamModel`` opens, where the image encoder is a ViT."""
        assert isinstance(config, sam.SamConfig)
        assert isinstance(processor, Path)
        sam.save(folder, config, params, processor=processor, card=card)

    def examples(self, processor: Processor, data: Sequence[Any]) -> Sequence[Any]:
        """Images with masks, as they are: they are read when they are used."""
        return data

    def finetune(
        self,
        params: Params,
        config: Architecture,
        examples: Sequence[Any],
        train: TrainConfig,
        run: RunConfig,
        *,
        seed: int,
        progress: Progress,
        stage: str,
        key: str,
        checkpoints: training.TrainingCheckpoints | None = None,
    ) -> tuple[Params, dict[str, Any]]:
        """Trains what ``masks`` says; low-rank updates are multiplied out.

        The record counts images. Its ``tokens`` are the images of all steps. A step has three passes of the decoder, and three
        of the encoder where it is trained. ``flops`` are those of the encoder, which embeds an image once where it is frozen.
        """
        assert isinstance(config, sam.SamConfig)
        chosen, options = run.mask_options, train_options(train)
        masks = training.MaskOptions(chosen.trained, chosen.flips, chosen.jitter_fraction, chosen.iou_weight)
        common: dict[str, Any] = {"seed": seed, "progress": progress, "stage": stage, "key": f"{key}.learning_rate"}
        common |= {"checkpoints": checkpoints, "folder": _embedding_folder(run)}
        if chosen.rank is None:
            trained, metrics = training.finetune_masks(params, config, examples, options, masks, **common)
        else:
            adapter, metrics = training.finetune_mask_adapter(
                params, config, examples, options, masks, rank=chosen.rank, **common
            )
            trained = operators.apply_adapter(params, adapter)
        embedded = metrics.embedded if chosen.trained == "decoder" else 3 * metrics.images
        used = {"tokens": metrics.images, "attended": 0, "seconds": metrics.seconds}
        return trained, {"steps": len(metrics.losses), **used, "flops": embedded * self.flops(config)["pair"]}

    def evaluator(
        self,
        config: Architecture,
        processor: Processor,
        run: RunConfig,
        tasks: Sequence[Any],
        group: DeviceGroup,
        base: Callable[[], Params],
        workers: int,
        log: Callable[[str], None],
        *,
        read_only: bool,
    ) -> SegmentationEvaluator:
        """A predictor that keeps the embeddings of the base's image encoder."""
        assert isinstance(config, sam.SamConfig)
        configured, folder = run.mask_options.batch_size, None if read_only else run.folder
        encoder = group.place(base()["vision"], config)
        batch_size = known_slots(run.folder, configured)
        predictor = SamPredictor(config, encoder=encoder, batch_size=batch_size, folder=_embedding_folder(run))
        return SegmentationEvaluator(
            predictor,
            tasks,
            shrink=lambda: halve_batch(
                predictor.batch_size, predictor.resize, configured, log, folder, what="images", key="masks.batch_size"
            ),
            usage=predictor.usage,
            sizes=sizes_of(run),
            workers=workers,
        )

    def library(self, config: Architecture) -> str:
        """That of transformers' ``SamModel`` where the image encoder is a ViT; it has no other."""
        assert isinstance(config, sam.SamConfig)
        return "transformers" if isinstance(config.vision, sam.VitConfig) else "cycleqd_jax"

    def flops(self, config: Architecture) -> Mapping[str, int]:
        """FLOPs for each image whose mask is predicted (``layers``), and for each that is embedded (``pair``)."""
        assert isinstance(config, sam.SamConfig)
        return {"layers": decoder_flops(config), "head": 0, "pair": encoder_flops(config)}


def _embedding_folder(run: RunConfig) -> EmbeddingFolder | None:
    """What runs that share a cache keep of frozen image encoders; processes of a distributed run keep nothing."""
    limit = int(run.mask_options.cache_gib * 2**30)
    if not limit or jax.process_count() > 1:
        return None
    return EmbeddingFolder(Path(run.cache) / "embeddings", limit_bytes=limit)
