"""Continuous batching: token ids in, token ids out.

This module is the public face. The parts, each with its own state: ``requests`` (values and replies), ``scheduler`` (queue and
slots), ``pages`` (the page pool), ``prefix`` (shared prefixes), ``batches`` (arrays for the programs), ``layout`` (sizes),
``runner`` (weights and caches on the devices) and ``loop`` (the order of the host's work). ``scoring`` has the methods for
given texts.

Prompts are computed in chunks, several at once, and all slots decode together, many steps between two host syncs. A slot whose
reply is complete takes the next request at the following host sync. Nothing depends on time: the same requests, submitted
between the same host syncs, run the same programs in the same order.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from cycleqd_jax.engine import drafts as sources
from cycleqd_jax.engine import requests
from cycleqd_jax.engine.attention import Attention, KVCacheDtype
from cycleqd_jax.engine.batches import Batches
from cycleqd_jax.engine.layout import STEPS, EngineLayout, check_mesh
from cycleqd_jax.engine.loop import HostLoop
from cycleqd_jax.engine.requests import Generation, OnTokens, Request, Statistics, StopWhen
from cycleqd_jax.engine.runner import Runner
from cycleqd_jax.engine.scoring import Scoring
from cycleqd_jax.models.llama import LlamaConfig
from cycleqd_jax.types import InputError, Params, TokenCounts

__all__ = ["Engine"]


class Engine(Scoring):
    """Decodes prompts with the weights that were loaded last.

    A program is compiled when it is first needed, or by :meth:`warm_up`; other weights or requests never recompile it. A reply
    depends on its request alone, not on time. The batch that it is computed in may change the last bits of its logits, and
    with them a token where two are equally likely.

    Args:
        config: the model.
        slots: conversations that are decoded at the same time. Idle conversations between two turns keep their cache pages
            until memory runs out; where the cache has no pages, they give way to waiting requests.
        max_len: the most tokens of a prompt and its reply together.
        stop_ids: tokens that end a reply.
        pad_id: fills empty places; any valid token.
        mesh: devices to work on; loaded weights must lie there. KV heads are split over ``tensor``.
        attention: None takes the fastest implementation for the platform.
        steps: decode steps between two host syncs.
        chunk: prompt tokens that are computed as one row; None takes the platform's.
        share_prefixes: compute a prefix of several waiting prompts once.
        keep_conversations: keep the cache of a conversation for its next turn.
        window: tokens per slot of a step that verifies drafts (:meth:`submit`); 1 ignores drafts.
        overflow: ``"refuse"`` refuses a prompt that leaves no room for a token. ``"truncate"`` cuts the beginning of a prompt
            until its reply has room for the whole limit, or for half of ``max_len`` where the limit is more.
        kv_cache_dtype: dtype of keys and values, where ``attention`` is None: ``"auto"`` is that of the model; CPUs have
            ``"bfloat16"`` and ``"int8"`` too.

    Attributes:
        layout: all sizes.

    Raises:
        InputError: a size is below its least value, ``max_len`` is beyond the model's positions, an id is not in the
            vocabulary, the mesh does not divide the KV heads, or the platform does not have ``kv_cache_dtype``.

    >>> import jax
    >>> from cycleqd_jax.engine import Engine
    >>> from cycleqd_jax.models import llama
    >>> config = llama.LlamaConfig(32, 16, 16, 1, 2, 1, 8)  # a tiny model with random weights
    >>> engine = Engine(config, slots=1, max_len=16, stop_ids=[1], pad_id=0, steps=4, share_prefixes=False)
    >>> engine.load(llama.init_params(config, jax.random.key(0)))
    >>> replies = engine.generate([[5, 6, 7], [8, 9]], [4, 4])
    >>> [0 < len(reply.ids) <= 4 for reply in replies]
    [True, True]
    """

    def __init__(
        self,
        config: LlamaConfig,
        *,
        slots: int,
        max_len: int,
        stop_ids: Sequence[object],
        pad_id: object,
        mesh: Mesh | None = None,
        attention: Attention | None = None,
        steps: int = STEPS,
        chunk: int | None = None,
        share_prefixes: bool = True,
        keep_conversations: bool = True,
        window: int = 1,
        overflow: str = "refuse",
        kv_cache_dtype: KVCacheDtype = "auto",
    ) -> None:
        platform = (jax.devices() if mesh is None else mesh.devices.flat)[0].platform
        self._layout_of = functools.partial(
            EngineLayout.of,
            config,
            max_len=max_len,
            platform=platform,
            attention=attention,
            steps=steps,
            chunk=chunk,
            window=window,
            kv_cache_dtype=kv_cache_dtype,
        )
        layout = self._layout_of(slots=slots)
        self.stop_ids, self.pad_id = requests.check_settings(stop_ids, pad_id, overflow, vocab_size=config.vocab_size)
        if mesh is not None:
            check_mesh(config, mesh)
        self.config = config
        self.max_len = max_len
        self.overflow = overflow
        self._mesh = mesh
        self._share_prefixes = share_prefixes
        self._keep_conversations = keep_conversations
        self._numbers = itertools.count()
        self._build(layout)

    def _build(self, layout: EngineLayout) -> None:
        self.layout = layout
        batches = Batches(layout, self.pad_id)
        self._runner = Runner(layout, batches, self.stop_ids, self._mesh)
        self._loop = HostLoop(
            layout,
            self._runner,
            batches,
            self.stop_ids,
            share_prefixes=self._share_prefixes,
            keep_conversations=self._keep_conversations,
        )

    @property
    def slots(self) -> int:
        """Conversations that are decoded at the same time."""
        return self.layout.slots

    def resize(self, slots: int) -> None:
        """Changes the number of slots. The weights, the caches, all requests and the counters are dropped.

        Args:
            slots: conversations that are decoded at the same time from now on.

        Raises:
            InputError: there is no slot.
        """
        self._build(self._layout_of(slots=slots))

    @property
    def statistics(self) -> Statistics:
        """Counters."""
        return self._loop.statistics

    def usage(self) -> tuple[TokenCounts, ...]:
        """The tokens of every loaded individual since the weights were loaded; after an error too."""
        return tuple(self._loop.usage[i] for i in range(self._runner.individuals or 1))

    # Weights

    def load(self, params: Params, *, donate: bool = False) -> None:
        """Replaces the weights. Loading new weights clears every cache and drops waiting requests.

        The engine keeps every layer's matrices as separate arrays, so that kernels need no copy.

        Args:
            params: the weights of a model with the engine's config; with :class:`~cycleqd_jax.types.MixedMatrix` leaves, those
                of several individuals.
            donate: delete each stack of matrices once it is split into layers, so that the weights are never in memory twice,
                except for one stack (and on CPUs a tied head in bfloat16); ``params`` can't be used afterwards.

        Raises:
            InputError: names, shapes or dtypes differ from the config's.
        """
        self._runner.check(params)
        self.unload()  # frees the old weights before the new ones are split into layers
        self._runner.load(params, donate=donate)
        self.statistics.loads += 1
        self._loop.usage.clear()

    def unload(self) -> None:
        """Frees the weights and drops all requests."""
        self._loop.forget()
        self._runner.params = None

    # Requests

    def submit(
        self,
        prompt: Sequence[object],
        max_new_tokens: object,
        *,
        conversation: Hashable = None,
        temperature: object = 0.0,
        top_p: object = 1.0,
        seed: object = 0,
        individual: object = 0,
        drafts: Sequence[Sequence[object]] = (),
        stop_when: StopWhen | None = None,
        on_tokens: OnTokens | None = None,
    ) -> int:
        """Puts a request into the queue.

        Args:
            prompt: token ids, at least one.
            max_new_tokens: the most tokens of the reply, at least one; fewer where ``max_len`` ends it first.
            conversation: names a conversation. Its cache is kept after the reply until :meth:`release`, and the part of its
                next prompt that is in the cache is not computed again. It may have one request at a time.
            temperature: 0 is greedy.
            top_p: draw from the likeliest tokens that together have this probability.
            seed: the seed of the draws; the same request draws the same tokens, whatever else is decoded.
            individual: whose weights to use, where those of several individuals are loaded.
            drafts: replies that this one may repeat in part, the likeliest first. They change its speed, and not the reply: the
                engine verifies several of their tokens per step. Drafts are ignored where they are empty, longer than
                ``max_new_tokens`` or have other tokens than the vocabulary, and where tokens are drawn.
            stop_when: called at every host sync with all tokens of the reply so far; returns how many of them are the reply if
                it is complete, or None.
            on_tokens: called at every host sync with the new tokens.

        Returns:
            The request's number, which :meth:`advance` returns with the reply.

        Raises:
            InputError: an empty prompt, a limit below one, ids outside the vocabulary, a negative temperature, a ``top_p``
                outside (0, 1], a seed that is not a 32-bit number, an individual that is not loaded, a second request of a
                conversation, or a number that is not whole.
            RuntimeError: no weights have been loaded.
            TypeError: the conversation's name is not hashable.
        """
        if self._runner.params is None:
            raise RuntimeError("expected weights before a request, got none; call Engine.load(params) first")
        tokens, limit, draw, who = requests.checked(
            prompt,
            max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            individual=individual,
            vocab_size=self.config.vocab_size,
            individuals=self._runner.individuals or 1,
        )
        if self._loop.scheduler.waits(conversation):
            raise InputError(
                f"expected one request of conversation {conversation!r} at a time, got a second; wait for its reply"
            )
        number = next(self._numbers)
        greedy = self.layout.window > 1 and draw.temperature == 0
        found = sources.usable(drafts, limit, self.config.vocab_size) if greedy else []
        tokens, limit, dropped = requests.fit(tokens, limit, self.max_len, self.overflow)
        if limit < 1:
            self._loop.done.append((number, Generation((), "refused")))
        else:
            source = sources.joined(found, tokens, self.max_len)
            # The place after the first token of the first draft, which the prefill generates.
            at = len(tokens[1 - sources.CONTEXT :]) + 2
            self._loop.scheduler.add(
                Request(number, tokens, limit, conversation, draw, who, stop_when, on_tokens, dropped, source, at)
            )
        return number

    def release(self, conversation: Hashable) -> None:
        """Ends a conversation: its cache is freed, and a request of it is dropped."""
        if conversation is not None:
            self._loop.free(self._loop.scheduler.release(conversation))

    def cancel(self) -> None:
        """Drops all requests, including replies that were not returned yet. Idle conversations keep their KV caches."""
        self._loop.done = []
        self._loop.free(self._loop.scheduler.drop_requests())

    @property
    def busy(self) -> bool:
        """Whether a request is waiting, being decoded, or complete and not yet returned."""
        return bool(self._loop.done) or self._loop.scheduler.busy

    def advance(self) -> list[tuple[int, Generation]]:
        """One host sync: starts waiting requests where slots are free, and decodes up to ``steps`` tokens for every slot.

        Returns:
            Numbers and replies of the requests that are complete, ordered by number.

        Raises:
            NonFiniteError: the model computes NaN or infinite logits. After this and every other exception the engine has no
                requests and an empty cache, and can be used again.
        """
        if not self.busy:
            return []
        try:
            if self._loop.scheduler.busy:
                self._loop.sync()
            done, self._loop.done = sorted(self._loop.done, key=lambda pair: pair[0]), []
        except BaseException:
            self._loop.reset()
            raise
        return done

    def generate(
        self, prompts: Sequence[Sequence[object]], max_new_tokens: Sequence[object], **options: Any
    ) -> list[Generation]:
        """Decodes a batch.

        Args:
            prompts: token ids, at least one each.
            max_new_tokens: the most tokens of each reply, at least one.
            **options: of :meth:`submit`, the same for all prompts.

        Returns:
            A :class:`Generation` for each prompt, in order; ``"refused"`` where a prompt leaves no room for a token.

        Raises:
            InputError: see :meth:`submit`; or lists of different lengths, or an engine that is busy.
            NonFiniteError: the model computes NaN or infinite logits.
            RuntimeError: no weights have been loaded.
        """
        if len(prompts) != len(max_new_tokens):
            raise InputError(
                f"expected a token limit for each of {len(prompts)} prompts, got {len(max_new_tokens)}; give one for each"
            )
        if self.busy:
            raise InputError("expected an engine without requests, got one that is busy; finish with advance() first")
        replies: dict[int, Generation] = {}
        try:
            numbers = [self.submit(p, limit, **options) for p, limit in zip(prompts, max_new_tokens, strict=True)]
            while self.busy:
                replies |= dict(self.advance())
        except BaseException:
            self.cancel()
            raise
        return [replies[number] for number in numbers]

    def warm_up(self, shared: object = 0, *, scoring: bool = False) -> None:
        """Compiles every program that requests of up to ``max_len`` tokens can need.

        Args:
            shared: the most shared columns at a time, over all individuals. Every prefix counts rounded up to whole chunks, on
                CPUs to 256 columns. More columns than these need further programs.
            scoring: whether :meth:`score` will be called; its programs are compiled too.

        Raises:
            InputError: the engine is busy or keeps conversations, or ``shared`` is not a number of columns.
            NonFiniteError: the model computes NaN or infinite logits.
            RuntimeError: no weights have been loaded.
        """
        if self._runner.params is None:
            raise RuntimeError("expected weights before Engine.warm_up, got none; call Engine.load(params) first")
        if self._loop.scheduler.live:
            raise InputError("expected an engine without requests, got one that is busy; finish with advance() first")
        (most,) = requests.whole_numbers("shared columns", [shared])
        if most < 0:
            raise InputError(f"expected at least 0 shared columns, got {most}; correct it")
        one, all_ = self.layout.aligned(1), self.layout.aligned(most)
        sizes = {self.layout.shared_columns(columns) for columns in range(one, all_ + 1, one)}
        try:
            self._loop.grow(self.layout.pages)
            if not self._runner.warm_up(sorted(sizes if self._share_prefixes else ()), scoring=scoring):
                raise self._runner.diagnose(Request(-1, (self.pad_id,), 1))
        except BaseException:
            self._loop.reset()
            raise
