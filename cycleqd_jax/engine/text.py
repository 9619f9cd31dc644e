"""The engine for plain text: log-likelihoods and continuations as lm-evaluation-harness defines them."""

from __future__ import annotations

import collections
import functools
from collections.abc import Sequence
from typing import Any

from cycleqd_jax.engine.detokenizer import stops_at, until
from cycleqd_jax.engine.engine import Engine
from cycleqd_jax.engine.requests import Generation, StopWhen
from cycleqd_jax.types import InputError, Likelihood

__all__ = ["TextScorer"]


class TextScorer:
    """A :class:`cycleqd_jax.types.Scorer`: texts in, log-likelihoods out; and plain texts, continued.

    Args:
        engine: an engine with loaded weights.
        tokenizer: the ``transformers`` tokenizer of the same model.
        special: whether its special tokens, such as bos, are added to a text; None is the tokenizer's own choice.
        prefix: the token before a text without context; None is the bos token, or else the eos token.

    Attributes:
        engine: the engine.
        tokenizer: the tokenizer.
        prefix: the token before a text without context.

    Raises:
        InputError: no ``prefix`` is given, and the tokenizer has neither a bos nor an eos token.
    """

    def __init__(self, engine: Engine, tokenizer: Any, *, special: bool | None = None, prefix: int | None = None) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        found = next((i for i in (prefix, tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
        if found is None:
            raise InputError("expected a tokenizer with a bos or an eos token, got neither; give the id of the first token")
        self.prefix: int = found
        self._special = special
        self._encode_cached = functools.lru_cache(4096)(self._encode)  # the choices of a question have one context

    def encode(self, text: str, *, special: bool | None = None) -> list[int]:
        """The token ids of a text.

        Args:
            text: a text; no special token is added to one that begins with the prefix token, as chat templates write it.
            special: whether special tokens are added; None is the choice of the class.
        """
        return list(self._encode_cached(text, special))

    def _encode(self, text: str, special: bool | None) -> tuple[int, ...]:
        if special is None:
            special = self._special
            begins = self.tokenizer.decode([self.prefix])
            if begins and text.startswith(begins):
                special = False
        options = {} if special is None else {"add_special_tokens": special}
        return tuple(self.tokenizer.encode(text, **options))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _whole(self, ids: Sequence[int]) -> str:
        """The same with all spaces: some tokenizers remove those before punctuation marks."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _ends_at(self, stop: Sequence[str]) -> StopWhen | None:
        """Ends a continuation at a stop string. It may be a special token, which :meth:`decode` leaves out."""
        if not stop:
            return None
        added = self.tokenizer.get_added_vocab()
        special, plain = {added[text] for text in stop if text in added}, stops_at(self._whole, stop)

        def stop_when(ids: Sequence[int]) -> int | None:
            found = next((place for place, i in enumerate(ids, 1) if i in special), None)
            return min((kept for kept in (found, plain(ids)) if kept is not None), default=None)

        return stop_when

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The token ids of a context and of its continuation.

        Both are encoded together, and the continuation has the ids after as many as the context alone has. Spaces at the end of
        the context belong to the continuation. The context of an empty text is the prefix token; a continuation that begins
        with this token is not given it twice.
        """
        if not context:
            ids = self.encode(continuation, special=False)
            return ([self.prefix], ids) if ids[:1] != [self.prefix] else (ids[:1], ids[1:])
        bare = context.rstrip()
        begin = self.encode(bare)
        return begin, self.encode(context + continuation)[len(begin) :]

    def score(self, pairs: Sequence[tuple[str, str]], *, individual: int = 0) -> list[Likelihood]:
        """The log-likelihood of every continuation, given its context.

        Args:
            pairs: contexts and continuations (:meth:`encode_pair`).
            individual: whose weights are used, where those of several individuals are loaded.

        Raises:
            InputError: a continuation has no token; see :meth:`cycleqd_jax.engine.Engine.score`.
            NonFiniteError: the model computes NaN or infinite logits.
        """
        return self.engine.score([self.encode_pair(*pair) for pair in pairs], individual=individual)

    def score_rolling(self, texts: Sequence[str], *, individual: int = 0) -> list[Likelihood]:
        """The log-likelihoods of whole texts of any length (:meth:`cycleqd_jax.engine.Engine.score_rolling`)."""
        return self.engine.score_rolling([self.encode(text) for text in texts], self.prefix, individual=individual)

    def generate(
        self,
        contexts: Sequence[str],
        max_new_tokens: int,
        *,
        stop: Sequence[str] = (),
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> list[str]:
        """Continues texts. A context that leaves no room for ``max_new_tokens`` loses its beginning.

        Args:
            contexts: the texts.
            max_new_tokens: the most tokens of each continuation.
            stop: strings that end a continuation and are not part of it. Special tokens may be among them.
            temperature: 0 is greedy.
            top_p: draw from the likeliest tokens that together have this probability.
            seed: the seed of the draws. A context that occurs several times has the next seeds, so that its draws differ.

        Raises:
            InputError: ``max_new_tokens`` leaves no room for a context, or the engine is busy.
            NonFiniteError: the model computes NaN or infinite logits.
        """
        room = self.engine.max_len - max_new_tokens
        if room < 1:
            raise InputError(
                f"expected fewer new tokens than the engine's max_len = {self.engine.max_len}, got {max_new_tokens}; ask for "
                "fewer"
            )
        if self.engine.busy:
            raise InputError("expected an engine without requests, got one that is busy; finish with advance() first")
        stop = [text for text in stop if text]
        seen: collections.Counter[str] = collections.Counter()
        seeds: list[int] = []
        for context in contexts:
            seeds.append((seed + seen[context]) % 2**32 if seen[context] else seed)
            seen[context] += 1
        replies: dict[int, Generation] = {}
        try:
            numbers = [
                self.engine.submit(
                    (self.encode(context) or [self.prefix])[-room:],
                    max_new_tokens,
                    temperature=temperature,
                    top_p=top_p,
                    seed=own,
                    stop_when=self._ends_at(stop),
                )
                for context, own in zip(contexts, seeds, strict=True)
            ]
            while self.engine.busy:
                replies |= dict(self.engine.advance())
        except BaseException:
            self.engine.cancel()
            raise
        stop_ids = self.engine.stop_ids
        found = [replies[number].ids for number in numbers]
        return [until(self.decode(ids[:-1] if ids and ids[-1] in stop_ids else ids), stop) for ids in found]
