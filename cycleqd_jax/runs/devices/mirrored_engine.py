"""The engine of a distributed run: every process has one, and all get the same requests between the same host syncs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from cycleqd_jax.engine import Engine, Likelihood, TokenLogprobs
from cycleqd_jax.runs.devices.mirror import Mirror, mirrored
from cycleqd_jax.types import Params

__all__ = ["MirroredEngine"]


class MirroredEngine(Engine):
    """An engine whose calls are made in all processes; see :class:`~cycleqd_jax.engine.Engine`.

    An engine is deterministic: the same calls in the same order run the same programs, and give the same replies. So only the
    calls travel. Names of conversations are numbers or texts, and requests have no functions.

    Args:
        mirror: makes the calls in the other processes.
        place: brings weights to the devices of the engine.
        options: further arguments of :class:`~cycleqd_jax.engine.Engine`.
    """

    def __init__(self, config: Any, *, mirror: Mirror, place: Callable[[Params], Params], **options: Any) -> None:
        self.mirror = mirror
        self._place = place
        super().__init__(config, **options)
        mirror.register("engine", self)

    @mirrored("engine")
    def resize(self, slots: int) -> None:
        """See :meth:`cycleqd_jax.engine.Engine.resize`."""
        super().resize(slots)

    @mirrored("engine")
    def load(self, params: Params, *, donate: bool = False) -> None:
        """See :meth:`cycleqd_jax.engine.Engine.load`; the weights are the last that a mirrored call has made."""
        super().load(self._place(params), donate=donate)

    @mirrored("engine")
    def unload(self) -> None:
        """See :meth:`cycleqd_jax.engine.Engine.unload`."""
        super().unload()

    @mirrored("engine", deferred=True)
    def submit(self, prompt: Sequence[object], max_new_tokens: object, **options: Any) -> int:
        """See :meth:`cycleqd_jax.engine.Engine.submit`."""
        return super().submit(prompt, max_new_tokens, **options)

    @mirrored("engine", deferred=True)
    def release(self, conversation: Hashable) -> None:
        """See :meth:`cycleqd_jax.engine.Engine.release`."""
        super().release(conversation)

    @mirrored("engine")
    def advance(self) -> list[Any]:
        """See :meth:`cycleqd_jax.engine.Engine.advance`."""
        return super().advance()

    @mirrored("engine")
    def score(self, pairs: Sequence[tuple[Sequence[object], Sequence[object]]], **options: Any) -> list[Likelihood]:
        """See :meth:`cycleqd_jax.engine.Engine.score`."""
        return super().score(pairs, **options)

    @mirrored("engine")
    def token_logprobs(self, texts: Sequence[Sequence[object]], **options: Any) -> list[TokenLogprobs]:
        """See :meth:`cycleqd_jax.engine.Engine.token_logprobs`."""
        return super().token_logprobs(texts, **options)
