"""``cycleqd generate``: one answer of one model."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from cycleqd_jax.engine import stream_reply
from cycleqd_jax.models.files import hf
from cycleqd_jax.models.files.checkpoint import load_tokenizer, open_checkpoint
from cycleqd_jax.types import InputError, NonFiniteError

__all__ = ["generate"]


def generate(model: str | Path, prompt: str, max_new_tokens: int) -> None:
    """Prints a model's greedy answer to one user message while it is generated; how fast, to a terminal's standard error.

    Args:
        model: a Hugging Face folder, a ``.gguf`` file or a repository of the hub.
        prompt: the user's message.
        max_new_tokens: most tokens of the answer; fewer where the model's context ends first.

    Raises:
        InputError: when the model can't be read, computes no numbers, or the prompt does not fit it.
    """
    if max_new_tokens < 1:
        raise InputError(f"--max-new-tokens must be positive, but is {max_new_tokens}.")
    open_checkpoint(model, weights=False)  # what is no model is called so, and not a model without a tokenizer
    tokenizer = load_tokenizer(model)  # before weights are downloaded
    config, params = hf.load(model)
    start = time.perf_counter()
    told: list[tuple[float, int]] = []  # seconds, and tokens so far
    try:
        for text, tokens in stream_reply(
            params, config, tokenizer, [{"role": "user", "content": prompt}], max_new_tokens=max_new_tokens
        ):
            print(text, end="", flush=True)
            told.append((time.perf_counter() - start, tokens))
    except NonFiniteError as error:
        print()
        raise InputError(f"{model} can't answer: {error}.") from error
    print(flush=True)
    if told and sys.stderr.isatty():
        print(_speed(told), file=sys.stderr)


def _speed(told: list[tuple[float, int]]) -> str:
    """Programs are compiled before the first and the second piece: the rate is that of the pieces after."""
    (first, _), (seconds, tokens) = told[0], told[-1]
    rate = ""
    if len(told) > 2:
        since, before = told[1]
        rate = f", then {(tokens - before) / (seconds - since):.1f} tokens/s"
    return f"{tokens} tokens; the first after {first:.1f}s{rate}"
