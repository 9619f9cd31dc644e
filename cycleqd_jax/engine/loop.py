"""The host's work between two calls of programs: admit requests, compute their prompts, decode, and free what has ended."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from cycleqd_jax.engine.batches import Batches, Chunk, chunks_of
from cycleqd_jax.engine.layout import EngineLayout
from cycleqd_jax.engine.pages import PagePool
from cycleqd_jax.engine.prefix import PrefixTable, common_length
from cycleqd_jax.engine.requests import Generation, Request, Statistics
from cycleqd_jax.engine.runner import Runner
from cycleqd_jax.engine.scheduler import Scheduler, Slot
from cycleqd_jax.engine.scores import Bundle, Found, Part
from cycleqd_jax.types import Array, Bool, Int, TokenCounts

__all__ = ["HostLoop"]

PORTION = 8
"""Bundles per slot that are looked at together for common beginnings of their contexts."""


class HostLoop:
    """Owns the parts of an engine and passes each one's work to the next.

    After an exception in :meth:`sync` the buffers of the caches may have been donated and not replaced: :meth:`reset` it.

    Args:
        layout: sizes.
        runner: weights and caches.
        batches: makes the programs' arguments.
        stop_ids: tokens that end a reply.
        share_prefixes: compute a prefix of several waiting prompts once.
        keep_conversations: keep the cache of a conversation for its next turn.

    Attributes:
        scheduler: queue and slots.
        pool: pages of the cache.
        prefixes: what the shared columns hold.
        done: numbers and replies of complete requests.
        statistics: counters.
        usage: tokens by individual, since the weights were loaded.
    """

    def __init__(
        self,
        layout: EngineLayout,
        runner: Runner,
        batches: Batches,
        stop_ids: tuple[int, ...],
        *,
        share_prefixes: bool,
        keep_conversations: bool,
    ) -> None:
        self._layout = layout
        self._runner = runner
        self._batches = batches
        self._stop_ids = stop_ids
        self._share_prefixes = share_prefixes
        self.scheduler = Scheduler(layout.slots, paged=layout.attention.paged, keep_conversations=keep_conversations)
        self.pool = PagePool(layout)
        self.prefixes = PrefixTable(layout)
        self.done: list[tuple[int, Generation]] = []
        self.statistics = Statistics()
        self.usage: defaultdict[int, TokenCounts] = defaultdict(TokenCounts)

    def forget(self) -> None:
        """Drops all requests, conversations and prefixes; the memory of the caches stays allocated."""
        self.scheduler.forget()
        self.pool.forget()
        self.prefixes.forget()
        self.done = []

    def reset(self) -> None:
        """Drops everything and frees the caches."""
        self.pool.lose()
        self._runner.lose()
        self.forget()

    def sync(self) -> None:
        """One host sync: starts waiting requests where slots are free, and decodes.

        Raises:
            NonFiniteError: logits are not finite.
        """
        self._admit()
        self._decode()
        self.statistics.rounds += 1

    def score(self, bundles: Sequence[Bundle], individual: int, top: int = 0) -> list[Found]:
        """Scores bundles, as many at a time as there are free slots; no request may wait, and one slot must be free.

        Args:
            bundles: ordered by their contexts, so that those with a common beginning are computed together.
            individual: whose weights are used.
            top: how many of the likeliest tokens are computed for each target.

        Returns:
            What was found for each target, in any order of the pairs; those of one pair are in the order of its tokens.

        Raises:
            NonFiniteError: logits are not finite.
        """
        found: list[Found] = []
        for start in range(0, len(bundles), PORTION * self._layout.slots):
            portion = bundles[start : start + PORTION * self._layout.slots]
            for number, bundle in enumerate(portion):
                self.scheduler.add(Request(number, bundle.context, 1, individual=individual))
            self.compute_prefixes()
            while self.scheduler.queue:
                found += self._score_slots(portion, top)
                self.statistics.rounds += 1
        return found

    def _score_slots(self, bundles: Sequence[Bundle], top: int) -> list[Found]:
        """Scores as many of the waiting bundles as there are free slots."""
        rows: list[tuple[Chunk, Part, Bundle]] = []
        started: list[Slot] = []
        for request, slot in self.scheduler.assign():
            bundle, interval = bundles[request.number], self.prefixes.find(request)
            length = interval[1] - interval[0]
            own = bundle.tokens[length:]
            self.pool.give_back(slot)
            self.statistics.reused += length
            self.statistics.prefilled += len(own)
            usage = self.usage[request.individual]
            usage.prompt += len(bundle.tokens)
            usage.compute(length, len(bundle.context))
            for _, branch in itertools.groupby(column for column in bundle.branch if column):
                usage.compute(len(bundle.context), len(bundle.context) + len(list(branch)))
            self.scheduler.start(request, slot)
            slot.shared, slot.tokens = interval, list(own)
            self.reserve(slot, len(own))
            started.append(slot)
            chunks = chunks_of(request, slot, own, size=self._layout.chunk)
            parts = bundle.parts(length, self._layout.chunk)
            rows += [(chunk, part, bundle) for chunk, part in zip(chunks, parts, strict=True)]
        # Rows with the same prefix are next to each other, and no chunk comes before an earlier one of its slot.
        rows.sort(key=lambda row: (row[0].shared, row[0].column))
        batches = self._batches.split(rows, lambda row: row[0])
        pending = [
            self._runner.score([part for _, part, _ in batch], [chunk for chunk, _, _ in batch], top) for batch in batches
        ]
        found = []
        for batch, scored in zip(batches, pending, strict=True):
            targets = [(target, chunk, bundle) for chunk, part, bundle in batch for target in part.targets]
            results = zip(*(x.tolist() for x in jax.device_get(scored)), strict=True)
            for (target, chunk, bundle), (logprob, best, fine, ids, others) in zip(targets, results, strict=False):
                if not fine:
                    raise self._runner.diagnose(Request(-1, bundle.tokens, 1, individual=chunk.individual))
                found.append(Found(target.pair, logprob, best, tuple(zip(ids, others, strict=True))))
        for slot in started:
            self.scheduler.finish(slot)
            self.pool.give_back(slot)
        return found

    def free(self, slots: Iterable[Slot]) -> None:
        """Frees the pages of slots whose columns are no longer needed."""
        for slot in slots:
            self.pool.give_back(slot)

    def grow(self, pages: int) -> None:
        """Enlarges the cache to this many pages, if it has fewer."""
        if pages > self.pool.size:
            self._runner.grow(pages)
            self.pool.grow(pages)

    def _admit(self) -> None:
        """Gives slots to waiting requests, and computes their prompts."""
        self.compute_prefixes()
        chunks: list[Chunk] = []
        for request, slot in self.scheduler.assign():
            interval = self.prefixes.find(request)
            length = interval[1] - interval[0]
            own = request.prompt[length:]
            kept = 0
            if slot.conversation is None or slot.conversation != request.conversation:
                self.pool.give_back(slot)
            elif slot.shared == interval and slot.individual == request.individual:
                kept = min(common_length(own, slot.tokens), len(own) - 1)
                if self._layout.attention.paged:
                    kept -= kept % self._layout.page  # a chunk is a page
            self.statistics.reused += kept + length
            self.statistics.prefilled += len(own) - kept
            usage = self.usage[request.individual]
            usage.prompt += len(request.prompt)
            usage.compute(length + kept, len(request.prompt))
            self.scheduler.start(request, slot)
            slot.shared, slot.tokens = interval, list(own)
            self.reserve(slot, len(own))
            chunks += chunks_of(request, slot, own, size=self._layout.chunk, start=kept)
        chunks.sort(key=lambda chunk: chunk.shared)  # rows with the same prefix are next to each other
        pending = [(batch, self._runner.prefill(batch)) for batch in self._batches.split(chunks, lambda chunk: chunk)]
        for chunk, token in self._last_tokens(pending):
            assert chunk.slot is not None
            self._append(chunk.slot, [token])

    def compute_prefixes(self) -> None:
        """Computes the prefixes that waiting prompts have in common and that are not in the shared columns yet.

        It does nothing where no prefix may be shared, nothing waits, or a slot is in use.
        """
        if not self._share_prefixes or not self.scheduler.queue or self.scheduler.live:
            return
        columns, new = self.prefixes.choose(self.scheduler.queue, self._runner.shared_columns)
        if columns != self._runner.shared_columns:
            self._runner.set_shared_columns(columns)
        chunks: list[Chunk] = []
        for prefix in new:
            self.statistics.prefilled += len(prefix.tokens)
            self.usage[prefix.request.individual].compute(0, len(prefix.tokens))
            chunks += chunks_of(prefix.request, None, prefix.tokens, size=self._layout.chunk, first=prefix.start)
        # One individual after the other: NaN in the columns of a broken one would spread to the others, though masked.
        for _, own in itertools.groupby(chunks, key=lambda chunk: chunk.individual):
            batches = self._batches.split(own, lambda chunk: chunk)
            self._last_tokens([(batch, self._runner.prefill_shared(batch)) for batch in batches])

    def _last_tokens(self, pending: Iterable[tuple[Sequence[Chunk], tuple[Array, Array]]]) -> list[tuple[Chunk, int]]:
        """The chunks that end a prompt or a prefix, with the token that follows each.

        Raises:
            NonFiniteError: the logits of one are not finite.
        """
        ended = []
        for batch, results in pending:
            tokens, finite = jax.device_get(results)
            for chunk, token, fine in zip(batch, tokens.tolist(), finite.tolist(), strict=False):
                if chunk.request is None:
                    continue
                if not fine:
                    raise self._runner.diagnose(chunk.request)
                ended.append((chunk, token))
        return ended

    def _decode(self) -> None:
        """Generates tokens for every slot with a request: up to ``steps``, or several windows where it has drafts."""
        self.scheduler.count_idle()
        active = self.scheduler.active
        if not active:
            return
        drafted = [slot for slot in active if slot.request is not None and slot.request.source]
        plain = [slot for slot in active if slot not in drafted]
        for slot in active:
            assert slot.request is not None
            most = self._layout.verify_steps * self._layout.window if slot in drafted else self._layout.steps
            # A row that has ended writes to the column after its last.
            self.reserve(slot, len(slot.tokens) + min(most, slot.request.left) + 1)
        if self._layout.attention.paged and (pairs := self.pool.compact(active, self.scheduler.slots)):
            self._runner.swap(pairs)
        if plain:
            rows = self._rows(plain, self._layout.count_for(len(plain)))
            tokens, count, finite = jax.device_get(self._runner.decode(rows))
            self.statistics.steps += int(count.max())
            self._extend(rows, tokens, count, finite)
        if drafted:
            rows = self._rows(drafted, self._layout.verify_count_for(len(drafted)))
            found = jax.device_get(self._runner.verify(rows))
            self.statistics.steps += int(found.steps)
            for slot, at, count, windows in zip(
                rows, found.at.tolist(), found.count.tolist(), found.windows.tolist(), strict=True
            ):
                if slot.request is not None:
                    slot.request.at = at
                    slot.request.windows += windows
                    slot.request.verified += count
                    if self._layout.wastes_time(slot.request.windows, slot.request.verified):
                        slot.request.source = ()  # the reply goes on without drafts
                    self.statistics.windows += windows
                    self.statistics.accepted += count - windows
            self._extend(rows, found.tokens, found.count, found.finite)

    def _rows(self, slots: Sequence[Slot], count: int) -> list[Slot]:
        """The slots as rows of a program for ``count`` rows; where every slot has a row, the others have no request in it."""
        if self._layout.attention.paged:
            return [*slots, *[Slot()] * (count - len(slots))]
        return [slot if slot in slots else dataclasses.replace(slot, request=None) for slot in self.scheduler.slots]

    def _extend(
        self,
        rows: Sequence[Slot],
        tokens: Int[np.ndarray, "row column"],
        count: Int[np.ndarray, " row"],
        finite: Bool[np.ndarray, " row"],
    ) -> None:
        """Adds the tokens of a program to the replies of its rows.

        Raises:
            NonFiniteError: the logits of a row are not finite.
        """
        for slot, ids, n, fine in zip(rows, tokens.tolist(), count.tolist(), finite.tolist(), strict=True):
            if slot.request is None:
                continue
            if not fine:
                raise self._runner.diagnose(slot.request, ids[: n - 1])
            self.statistics.decoded += n
            newest = len(slot.request.prompt) + len(slot.request.ids) - 1  # the reply has this token, and the cache does not
            self.usage[slot.request.individual].compute(newest, newest + n)
            slot.tokens += [slot.request.ids[-1], *ids[: n - 1]]
            self._append(slot, ids[:n])

    def _append(self, slot: Slot, ids: Sequence[int]) -> None:
        """Adds new tokens to a slot's reply, and frees the slot if the reply is complete."""
        request = slot.request
        assert request is not None
        self.usage[request.individual].generated += len(ids)
        generation = request.append(ids, self._stop_ids)
        if generation is not None:
            self.scheduler.finish(slot)
            if slot.conversation is None:
                self.pool.give_back(slot)
            self.done.append((request.number, generation))

    def reserve(self, slot: Slot, columns: int) -> None:
        """Gives a slot pages for this many columns: free ones, those of a larger cache, or those of an idle conversation."""
        while not self.pool.take(slot, columns):
            size = self.pool.larger()
            if size is not None:
                self.grow(size)
            else:
                wanted = {request.conversation for request in self.scheduler.queue}
                self.pool.give_back(self.pool.evictable(self.scheduler.slots, wanted))
