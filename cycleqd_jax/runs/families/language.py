"""Language models: Llama and its relatives, which play episodes of text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cycleqd_jax import training
from cycleqd_jax.config import ModelConfig, RunConfig, TrainConfig
from cycleqd_jax.engine import ChatGenerator, Engine, TextScorer
from cycleqd_jax.evaluation import Evaluator
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import check_tied, load_tokenizer, open_checkpoint, with_head
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.plan import ModelFlops
from cycleqd_jax.runs.devices.groups import Architecture, DeviceGroup
from cycleqd_jax.runs.families.base import Processor, sizes_of, train_options
from cycleqd_jax.runs.faults import halve_slots, known_slots
from cycleqd_jax.types import InputError, LikelihoodTask, Params, Progress

__all__ = ["LanguageModels"]


class LanguageModels:
    """The family of language models; see :class:`~cycleqd_jax.runs.families.Family`."""

    pipeline = "text-generation"
    unit = "tokens"

    def processor(self, model: str | Path) -> Processor:
        """Tokenizer and chat template."""
        return load_tokenizer(model)

    def check_model(self, model: str | Path, run: RunConfig) -> None:
        """Checks that the model has enough positions."""
        limit, wanted = open_checkpoint(model, weights=False).config.context_length, run.engine.max_len
        if wanted > limit:
            raise InputError(
                f"expected engine.max_len of at most {limit}, the positions of {model}, got {wanted}; make it smaller"
            )

    def load(
        self,
        folder: str | Path,
        options: ModelConfig,
        *,
        like: Architecture | None = None,
        shardings: Callable[[Any], Any] | None = None,
        log: Callable[[str], None] = lambda line: None,
    ) -> tuple[Architecture, Params]:
        """Reads a model; an expert's head is tied to its embedding as the base's is."""
        checkpoint = open_checkpoint(folder)
        if checkpoint.rounded and options.dtype is None:
            log(
                f"warning: {len(checkpoint.rounded)} tensors of {folder}, such as {checkpoint.rounded[0]}, are stored in "
                f"another dtype than the rest, and are rounded to {checkpoint.config.dtype}; model.dtype=float32 keeps them"
            )
        if isinstance(like, LlamaConfig) and like.tie_word_embeddings != checkpoint.config.tie_word_embeddings:
            check_tied(checkpoint)
            checkpoint = with_head(checkpoint, tied=like.tie_word_embeddings)
        return hf.load(checkpoint, dtype=options.dtype, vocab_size=options.vocab_size, shardings=shardings)

    def save(
        self, folder: str | Path, config: Architecture, params: Params, processor: Processor, card: str | None = None
    ) -> None:
        """Writes a Hugging Face folder with its tokenizer."""
        assert isinstance(config, LlamaConfig)
        assert isinstance(processor, ChatTokenizer)
        hf.save(folder, config, params, tokenizer=processor, card=card)

    def examples(self, processor: Processor, data: Sequence[Any]) -> list[Any]:
        """Tokenised conversations."""
        assert isinstance(processor, ChatTokenizer)
        return [processor.encode_for_training(conversation) for conversation in data]

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
        """Trains all weights on conversations; the record counts tokens without padding, and pairs of tokens."""
        assert isinstance(config, LlamaConfig)
        params, metrics = training.finetune(
            params,
            config,
            examples,
            train_options(train),
            seed=seed,
            progress=progress,
            stage=stage,
            key=f"{key}.learning_rate",
            checkpoints=checkpoints,
        )
        used = {"tokens": metrics.tokens, "attended": metrics.attended, "seconds": metrics.seconds}
        return params, {"steps": len(metrics.losses), **used}

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
    ) -> Evaluator:
        """An engine that plays the episodes of all tasks."""
        assert isinstance(config, LlamaConfig)
        assert isinstance(processor, ChatTokenizer)
        configured, folder = run.engine.slots, None if read_only else run.folder
        # All processes of a distributed run need the same number, and only one of them has the run folder.
        slots = configured if group.mirror is not None else known_slots(run.folder, configured)
        engine = group.engine(config, processor, dataclasses.replace(run.engine, slots=slots))

        def load(params: Params, *, donate: bool) -> None:
            placed = params if group.mirror is not None else group.place(params, config)  # the mirrored engine places them
            engine.load(placed, donate=donate)

        return Evaluator(
            load,
            ChatGenerator(engine, processor),
            tasks,
            scorer=_scorer(engine, processor, tasks),
            unload=engine.unload,
            shrink=lambda: group.mirror is None and halve_slots(engine, configured, log, folder),
            usage=engine.usage,
            sizes=sizes_of(run),
            workers=workers,
        )

    def library(self, config: Architecture) -> str:
        """Transformers, which opens all language models."""
        return "transformers"

    def flops(self, config: Architecture) -> Mapping[str, int]:
        """FLOPs for each token in the layers, for each whose logits are computed, and for each pair of tokens."""
        assert isinstance(config, LlamaConfig)
        return dataclasses.asdict(ModelFlops.of(config))


def _scorer(engine: Engine, tokenizer: ChatTokenizer, tasks: Sequence[Any]) -> TextScorer | None:
    """What computes log-likelihoods, where a task needs them."""
    if not any(isinstance(task, LikelihoodTask) for task in tasks):
        return None
    return TextScorer(engine, tokenizer.transformers_tokenizer)
