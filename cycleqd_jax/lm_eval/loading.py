"""What lm-eval's ``--model_args`` name, loaded: a model folder, or an individual of a run."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cycleqd_jax.engine import Engine
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import load_tokenizer
from cycleqd_jax.models.files.gguf_tokenizer import gguf_tokenizer
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.models.preflight import local_folder
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.models.tokenizer_files import open_tokenizer, pad_below, read_stop_tokens, stop_ids_of
from cycleqd_jax.types import InputError, Params, no_progress

__all__ = ["NAME", "SLOTS", "LoadedModel", "check_arguments", "load", "make_engine", "parameters_of"]

NAME = "cycleqd"
"""The name of the model in lm-eval's registry."""

DTYPES = ("float32", "bfloat16", "float16")

SLOTS = 16
"""Contexts that are computed at the same time where lm-eval gives no batch size."""


class LoadedModel(NamedTuple):
    """A model as lm-eval's arguments name it.

    Attributes:
        config: the architecture.
        params: the weights.
        tokenizer: the tokenizer of ``transformers``, with or without a chat template.
        stop_ids: tokens that end a reply.
    """

    config: LlamaConfig
    params: Params
    tokenizer: Any
    stop_ids: tuple[int, ...]


def load(*, pretrained: str | None, run: str | None, child: int | None, dtype: str | None) -> LoadedModel:
    """Loads a model folder, or rebuilds an individual of a run from its genome.

    Args:
        pretrained: a Hugging Face folder, a ``.gguf`` file, or a repository of the hub.
        run: instead, the folder of a run.
        child: the id of the individual; None is the model of the run's ``export.method``.
        dtype: the dtype of the weights; None is that of the model.

    Raises:
        InputError: not exactly one of ``pretrained`` and ``run`` is given, or the model can't be read or rebuilt.
    """
    if (pretrained is None) == (run is None) or (child is not None and run is None):
        given = [name for name, value in (("pretrained", pretrained), ("run", run), ("child", child)) if value is not None]
        raise InputError(
            "expected either pretrained=MODEL or run=FOLDER with or without child=ID, got "
            f"{' and '.join(given) or 'neither'} in --model_args; correct them"
        )
    if dtype not in (None, *DTYPES):
        raise InputError(f"expected a dtype ({', '.join(DTYPES)}), got {dtype!r} in --model_args; correct it")
    if run is not None:
        return _rebuilt(run, child, dtype)
    assert pretrained is not None
    tokenizer, stop_ids = _tokenizer(pretrained)
    config, params = hf.load(pretrained, dtype=dtype)
    return LoadedModel(config, params, tokenizer, stop_ids)


def _rebuilt(run: str, child: int | None, dtype: str | None) -> LoadedModel:
    # The stages of a run are imported where one is named: they take seconds.
    from cycleqd_jax.runs.folder.models import ModelChoice, RunModels

    if dtype is not None:
        raise InputError(f"expected no dtype beside run={run}, whose genomes have that of the run, got {dtype}; leave it out")
    with RunModels(run, no_progress, lambda line: None) as found:
        config, processor = found.models.config, found.models.processor
        if not isinstance(config, LlamaConfig) or not isinstance(processor, ChatTokenizer):
            raise InputError(f"expected a run of language models, got one of Segment Anything in {run}; give another run")
        params = found.params(None if child is None else ModelChoice("child", id=child))
    return LoadedModel(config, params, processor.transformers_tokenizer, processor.stop_ids)


def _tokenizer(model: str) -> tuple[Any, tuple[int, ...]]:
    """The tokenizer of a model, and the tokens that end a reply. A chat template is not needed."""
    folder = local_folder(model, weights=False)
    if folder.suffix == ".gguf":
        found = gguf_tokenizer(folder, template_required=False)
        return found.transformers_tokenizer, found.stop_ids
    if (folder / "tokenizer_config.json").is_file():
        plain = open_tokenizer(folder)
        if not plain.chat_template:
            stops, where = read_stop_tokens(folder, plain)
            if stops is None:
                raise InputError(f"expected a token that ends a reply, got none in {where}; name it as eos_token_id")
            return plain, stop_ids_of(stops, plain, str(where))
    found = load_tokenizer(folder)
    return found.transformers_tokenizer, found.stop_ids


def make_engine(model: LoadedModel, *, slots: int | None, max_length: int | None) -> Engine:
    """An engine with the model's weights.

    Args:
        model: the model; its arrays may be deleted.
        slots: contexts that are computed at the same time; None is :data:`SLOTS`.
        max_length: the most tokens of a text; None is the model's positions.

    Raises:
        InputError: ``max_length`` is beyond the model's positions.
    """
    engine = Engine(
        model.config,
        slots=slots or SLOTS,
        max_len=model.config.context_length if max_length is None else max_length,
        stop_ids=model.stop_ids,
        pad_id=pad_below(model.tokenizer.pad_token_id, model.stop_ids, model.config.vocab_size),
    )
    engine.load(model.params, donate=True)
    return engine


def check_arguments(known: Sequence[str], given: Mapping[str, Any]) -> None:
    """Refuses arguments that the model does not have.

    Raises:
        InputError: naming the argument, and those whose names are near.
    """
    for name in given:
        near = difflib.get_close_matches(name, known, 1)
        advice = f"did you mean {near[0]}?" if near else "leave it out"
        raise InputError(f"expected arguments of the model {NAME} ({', '.join(known)}), got {name!r} in --model_args; {advice}")


def parameters_of(function: Any) -> list[str]:
    """Names of the keyword parameters of a method."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [name for name, one in inspect.signature(function).parameters.items() if name != "self" and one.kind not in kinds]
