"""Log-likelihoods of given texts: the methods of the engine."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from cycleqd_jax.engine import requests
from cycleqd_jax.engine.layout import EngineLayout
from cycleqd_jax.engine.loop import HostLoop
from cycleqd_jax.engine.runner import Runner
from cycleqd_jax.engine.scores import (
    TOP,
    Found,
    TokenLogprobs,
    bundles_of,
    checked_pairs,
    checked_texts,
    joined,
    rolling_windows,
    token_logprobs,
    totals,
)
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.types import InputError, Likelihood

__all__ = ["Scoring"]


class Scoring(abc.ABC):
    """What :class:`~cycleqd_jax.engine.Engine` computes for given texts.

    Attributes:
        config: the model.
        max_len: the most tokens of a prompt and its reply together.
        layout: all sizes.
    """

    config: LlamaConfig
    max_len: int
    layout: EngineLayout
    _loop: HostLoop
    _runner: Runner

    @property
    @abc.abstractmethod
    def busy(self) -> bool:
        """Whether a request is waiting, being decoded, or complete and not yet returned."""

    def score(self, pairs: Sequence[tuple[Sequence[object], Sequence[object]]], *, individual: object = 0) -> list[Likelihood]:
        """The log-likelihoods of continuations, each given its context.

        The numbers are those of lm-evaluation-harness:

        - A pair may have ``max_len + 1`` tokens, since the last one is not an input. Longer pairs lose the beginning of
          the context.
        - Context and continuation are separate lists of ids. A caller that scores text encodes context and continuation
          together, and takes the ids after as many as the context alone has, so that a word which spans both is scored
          whole.
        - An empty context or continuation is refused.

        Continuations of the same context are computed together, and the context once. A beginning that many contexts have in
        common is computed once too. The batch of a pair changes the last bits of a result at most: the products have the same
        operands, in shapes that may differ.

        Args:
            pairs: token ids of contexts and continuations.
            individual: whose weights to use, where those of several individuals are loaded.

        Returns:
            A :class:`Likelihood` for each pair, in order.

        Raises:
            InputError: an empty context or continuation, a continuation of more than ``max_len`` tokens, ids outside the
                vocabulary, an individual that is not loaded, or an engine that is busy.
            NonFiniteError: the model computes NaN or infinite logits.
            RuntimeError: no weights have been loaded.
        """
        if self.busy:
            raise InputError("expected an engine without requests, got one that is busy; finish with advance() first")
        checked = checked_pairs(pairs, vocab_size=self.config.vocab_size, max_len=self.max_len)
        return totals(checked, self._score(checked, individual))

    def score_rolling(self, texts: Sequence[Sequence[object]], first: object, *, individual: object = 0) -> list[Likelihood]:
        """The log-likelihoods of whole texts of any length, as lm-evaluation-harness divides them into windows.

        Every token is scored once. A text of more than ``max_len`` tokens is divided by :func:`rolling_windows`.

        Args:
            texts: token ids; an empty text has the log-likelihood 0.
            first: the token before the first one of each text, the bos token as a rule.
            individual: see :meth:`score`.

        Returns:
            A :class:`Likelihood` for each text, in order; it is greedy if all windows are.

        Raises:
            InputError: see :meth:`score`.
            NonFiniteError: the model computes NaN or infinite logits.
            RuntimeError: no weights have been loaded.
        """
        (before,) = requests.whole_numbers("the first token", [first])
        ids = [requests.whole_numbers("tokens", text) for text in texts]
        windows = [[*rolling_windows(text, before, self.max_len)] for text in ids]
        found = iter(self.score([pair for pairs in windows for pair in pairs], individual=individual))
        return [joined([next(found) for _ in pairs]) for pairs in windows]

    def token_logprobs(
        self, texts: Sequence[Sequence[object]], *, top: object = 0, individual: object = 0
    ) -> list[TokenLogprobs]:
        """The log-probability of every token of a text after those before it, and of the likeliest ones at its place.

        They are those of the model's own distribution, at temperature 1. Other requests may be decoded meanwhile, if no request
        waits and a slot is free.

        Args:
            texts: token ids; up to ``max_len + 1`` of each text.
            top: alternatives of each token, at most 20.
            individual: see :meth:`score`.

        Returns:
            One value for each text, in order.

        Raises:
            InputError: an empty text or a longer one, ids outside the vocabulary, too many alternatives, an individual that is
                not loaded, or an engine without a free slot.
            NonFiniteError: the model computes NaN or infinite logits. After this and every other exception of the device the
                engine has no requests.
            RuntimeError: no weights have been loaded.
        """
        pairs, numbers, most = checked_texts(texts, top, vocab_size=self.config.vocab_size, max_len=self.max_len)
        # There are two programs: one without alternatives, and one with the most that may be wanted.
        computed = min(TOP, self.config.vocab_size) if most else 0
        return token_logprobs(len(texts), numbers, self._score(pairs, individual, top=computed), most)

    def _score(
        self, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...], int]], individual: object, *, top: int = 0
    ) -> list[Found]:
        """What is found for the targets of checked pairs."""
        if self._runner.params is None:
            raise RuntimeError("expected weights before scoring, got none; call Engine.load(params) first")
        if not self._loop.scheduler.has_room:
            raise InputError("expected an engine with a free slot, got none; finish requests with advance() first")
        (who,) = requests.whole_numbers("an individual", [individual])
        requests.check_individual(who, self._runner.individuals or 1)
        try:
            return self._loop.score(bundles_of(pairs, most=self.layout.chunk, max_len=self.max_len), who, top)
        except BaseException:
            self._loop.reset()
            raise
