"""``cycleqd generate``: prints a model's answer to one message."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from cycleqd_jax.compilation import persistent_compilation
from cycleqd_jax.config import RunConfig
from cycleqd_jax.engine import load_model
from cycleqd_jax.types import InputError, NonFiniteError

__all__ = ["generate"]


def generate(model: str | Path, prompt: str, max_new_tokens: int) -> None:
    """Prints a model's greedy answer to one user message while it is generated, and the speed if stderr is a terminal.

    Compiled programs are kept where runs keep them by default.

    Args:
        model: a Hugging Face folder, a ``.gguf`` file or a repository on the hub.
        prompt: the user's message.
        max_new_tokens: largest number of tokens of the answer, which the model's context also limits.

    Raises:
        InputError: the model can't be read, its logits are not finite, or the prompt does not fit its context.
    """
    if max_new_tokens < 1:
        raise InputError(f"expected --max-new-tokens to be at least 1, got {max_new_tokens}; correct it")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(InputError):  # without a folder that can be written, programs are compiled again
            stack.enter_context(persistent_compilation(Path(RunConfig.cache)))
        loaded = load_model(model)
        start = time.perf_counter()
        times: list[tuple[float, int]] = []  # seconds and number of tokens after every piece of text
        try:
            for text, tokens in loaded.stream_pieces(prompt, max_new_tokens=max_new_tokens):
                print(text, end="", flush=True)
                times.append((time.perf_counter() - start, tokens))
        except NonFiniteError as error:
            print()
            raise InputError(f"expected {model} to compute finite logits, got an error ({error}); use other weights") from error
    print(flush=True)
    if times and sys.stderr.isatty():
        print(_speed(times), file=sys.stderr)


def _speed(times: list[tuple[float, int]]) -> str:
    """The time of the first piece, and the rate after the second; both pieces include compilation."""
    (first, _), (seconds, tokens) = times[0], times[-1]
    rate = ""
    if len(times) > 2:
        second, before = times[1]
        rate = f", then {(tokens - before) / (seconds - second):.1f} tokens/s"
    return f"{tokens} tokens; the first after {first:.1f}s{rate}"
