"""From slots and chunks to the arrays that the programs take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from cycleqd_jax.engine import drafts, likelihood, programs
from cycleqd_jax.engine.cache import BLOCK, Rows, shared_blocks
from cycleqd_jax.engine.layout import EngineLayout
from cycleqd_jax.engine.requests import GREEDY, Request
from cycleqd_jax.engine.scheduler import Slot
from cycleqd_jax.engine.scores import Part
from cycleqd_jax.types import Int

__all__ = ["Batches", "Chunk", "chunks_of"]

_Row = TypeVar("_Row")


class Chunk(NamedTuple):
    """Consecutive tokens that are computed as one row of a prefill.

    Attributes:
        slot: the slot that stores them; None for shared columns.
        tokens: the tokens, at most the layout's ``chunk``.
        first: the first column that they may see.
        column: the column of the first token.
        shared: the shared columns that they see: start and end.
        request: whose prompt or prefix ends with them; None if more chunks follow.
        individual: whose weights are used.
    """

    slot: Slot | None
    tokens: Sequence[int]
    first: int
    column: int
    shared: tuple[int, int]
    request: Request | None
    individual: int


def chunks_of(
    request: Request, slot: Slot | None, tokens: Sequence[int], *, size: int, start: int = 0, first: int = 0
) -> list[Chunk]:
    """The chunks of a prompt or a prefix.

    Args:
        request: the request that they are computed for.
        slot: the slot that stores them; None for shared columns.
        tokens: all tokens.
        size: tokens per chunk.
        start: tokens that are in the cache already.
        first: the column of the first token.
    """
    shared = (0, 0) if slot is None else slot.shared
    last = len(tokens) - size
    return [
        Chunk(slot, tokens[i : i + size], first, first + i, shared, request if i >= last else None, request.individual)
        for i in range(start, len(tokens), size)
    ]


class Batches:
    """Makes the arguments of the programs.

    Args:
        layout: sizes.
        pad_id: token of empty places.
    """

    def __init__(self, layout: EngineLayout, pad_id: int) -> None:
        self._layout = layout
        self._pad_id = pad_id

    def split(self, rows: Iterable[_Row], chunk_of: Callable[[_Row], Chunk]) -> list[list[_Row]]:
        """Consecutive batches of at most the rows and the tokens of the largest prefill.

        Args:
            rows: chunks, or what belongs to one each.
            chunk_of: the chunk of each.
        """
        most = self._layout.batches[-1]
        batches: list[list[_Row]] = []
        left = 0
        for row in rows:
            size = len(chunk_of(row).tokens)
            if not batches or len(batches[-1]) == most or size > left:
                batches.append([])
                left = self._layout.batch_tokens(most)
            batches[-1].append(row)
            left -= size
        return batches

    def prefill(
        self, batch: Sequence[Chunk], *, size: int, shared_columns: int
    ) -> tuple[Int[np.ndarray, "batch chunk"], programs.Requests, programs.Packing | None]:
        """Tokens, requests and packing of a prefill with ``size`` rows; empty rows repeat the first chunk.

        Args:
            batch: a list of at most ``size`` chunks.
            size: rows.
            shared_columns: how many there are.
        """
        packing = self._packing(batch, size)
        filled = np.array(len(batch), np.int32) if packing else None
        first = batch[0] if batch else Chunk(None, (), 0, 0, (0, 0), None, 0)
        batch = [*batch, *[first] * (size - len(batch))]
        tokens = np.full((size, self._layout.chunk), self._pad_id, np.int32)
        for row, chunk in zip(tokens, batch, strict=True):
            row[: len(chunk.tokens)] = chunk.tokens
        rows = Rows(
            self._tables([chunk.slot for chunk in batch]),
            _int32(chunk.first for chunk in batch),
            _int32(chunk.column for chunk in batch),
            _int32(chunk.shared for chunk in batch),
            filled=filled,
        )
        requests = programs.Requests(
            self._with_near(rows, shared_columns, self._layout.chunk),
            _int32(chunk.individual for chunk in batch),
            _int32(len(chunk.tokens) for chunk in batch),
            _sampling(chunk.request for chunk in batch),
        )
        return tokens, requests, packing

    def _packing(self, batch: Sequence[Chunk], size: int) -> programs.Packing | None:
        """How the tokens of a batch are packed, where the cache has pages; empty rows have the tokens of the first."""
        if not self._layout.attention.paged:
            return None
        chunk = self._layout.chunk
        counts = [len(one.tokens) for one in batch]
        place = np.zeros(self._layout.batch_tokens(size), np.int32)
        at = np.zeros((size, chunk), np.int32)
        begin = 0
        for row, count in enumerate(counts):
            place[begin : begin + count] = row * chunk + np.arange(count)
            at[row] = begin + np.minimum(np.arange(chunk), max(count, 1) - 1)
            begin += count
        at[len(counts) :] = at[0]
        return programs.Packing(place, at)

    def score(
        self, parts: Sequence[Part], batch: Sequence[Chunk], *, size: int, shared_columns: int
    ) -> tuple[Int[np.ndarray, "batch chunk"], programs.Requests, programs.Packing | None, likelihood.Targets]:
        """Tokens, requests, packing and targets of a program that scores ``size`` rows; arguments as for :meth:`prefill`.

        Args:
            parts: what each chunk of the batch holds.
            batch: a list of at most ``size`` chunks.
            size: rows.
            shared_columns: how many there are.
        """
        chunk = self._layout.chunk
        tokens, requests, packing = self.prefill(batch, size=size, shared_columns=shared_columns)
        trunk, branch = np.zeros(size, np.int32), np.zeros((size, chunk), np.int32)
        for row, part in enumerate(parts):
            trunk[row] = part.trunk
            branch[row, : len(part.branch)] = part.branch
        # Rows past the batch repeat its first, in every respect.
        trunk[len(parts) :], branch[len(parts) :] = trunk[0], branch[0]
        # A row has at most one target for each of its tokens, and one more for each continuation of a context that ends in it.
        at, token = np.zeros((2, -(-2 * size * chunk // likelihood.HEAD_BLOCK) * likelihood.HEAD_BLOCK), np.int32)
        wanted = [(row * chunk + target.at, target.token) for row, part in enumerate(parts) for target in part.targets]
        if wanted:
            at[: len(wanted)], token[: len(wanted)] = np.asarray(wanted, np.int32).T
        blocks = np.array(-(-len(wanted) // likelihood.HEAD_BLOCK), np.int32)
        requests = requests._replace(rows=requests.rows._replace(trunk=trunk, branch=branch))
        return tokens, requests, packing, likelihood.Targets(at, token, blocks)

    def decode(
        self, slots: Sequence[Slot], *, shared_columns: int, pages: int
    ) -> tuple[Int[np.ndarray, " row"], programs.Requests]:
        """Last tokens and requests of a call of the decode program, a row per slot.

        Args:
            slots: some may have no request.
            shared_columns: how many there are.
            pages: the pages of the cache.
        """
        token = _int32(self._pad_id if slot.request is None else slot.request.ids[-1] for slot in slots)
        return token, self._decoding(slots, 1, shared_columns=shared_columns, pages=pages)

    def verify(self, slots: Sequence[Slot], *, shared_columns: int, pages: int) -> tuple[drafts.Sources, programs.Requests]:
        """Sources and requests of a call of the program that verifies drafts; arguments as for :meth:`decode`."""
        layout, requests = self._layout, [slot.request for slot in slots]
        replies = [() if request is None else (*request.prompt, *request.ids) for request in requests]
        pads = (self._pad_id,) * drafts.CONTEXT
        sources = drafts.Sources(
            drafts.texts([() if r is None else r.source for r in requests], replies, layout.max_len, layout.window),
            _int32(0 if request is None else request.at for request in requests),
            _int32((*pads, *reply)[-drafts.CONTEXT :] for reply in replies),
        )
        found = self._decoding(slots, layout.window, shared_columns=shared_columns, pages=pages)
        most = layout.verify_steps * layout.window
        ends = np.asarray(found.rows.columns) + np.minimum(found.count, most)
        return sources, found._replace(rows=found.rows._replace(ends=ends.astype(np.int32)))

    def _decoding(self, slots: Sequence[Slot], window: int, *, shared_columns: int, pages: int) -> programs.Requests:
        """The requests of rows with ``window`` tokens each."""
        rows = Rows(
            _int32(range(len(slots)))[:, None],
            _int32(0 for _ in slots),
            _int32(len(slot.tokens) for slot in slots),
            _int32(slot.shared for slot in slots),
        )
        if self._layout.attention.paged:
            owners = np.full(pages, -1, np.int32)
            starts = np.zeros_like(owners)
            for i, slot in enumerate(slots):
                owners[slot.pages] = i
                starts[slot.pages] = np.arange(len(slot.pages)) * self._layout.page
            used = np.flatnonzero(owners >= 0)
            blocks = np.array(used[-1] // BLOCK + 1 if used.size else 0, np.int32)
            rows = rows._replace(pages=self._tables(slots), owners=owners, starts=starts, blocks=blocks)
        requests = [slot.request for slot in slots]
        return programs.Requests(
            self._with_near(rows, shared_columns, window),
            _int32(slot.individual for slot in slots),
            _int32(0 if request is None else request.left for request in requests),
            _sampling(requests),
        )

    def _tables(self, slots: Sequence[Slot | None]) -> Int[np.ndarray, "batch width"]:
        """The pages of each row."""
        tables = np.zeros((len(slots), self._layout.width), np.int32)
        for row, slot in zip(tables, slots, strict=True):
            if slot is None:
                continue
            if self._layout.attention.paged:
                # A row with fewer pages repeats its own first: other pages are masked, but NaN in them would spread.
                row[:] = slot.pages[0] if slot.pages else 0
                row[: len(slot.pages)] = slot.pages[: self._layout.width]
            else:
                row[0] = slot.row
        return tables

    def _with_near(self, rows: Rows, shared_columns: int, tokens: int) -> Rows:
        """The rows with the pairs of blocks of rows and of shared columns in which a row sees a column."""
        if not shared_columns or not self._layout.attention.paged:
            return rows
        intervals = np.array(rows.shared)
        if rows.filled is not None:
            intervals[int(rows.filled) :] = 0  # nothing is computed for rows without tokens of their own
        size, width = shared_blocks(len(intervals), tokens, shared_columns)
        starts = np.arange(0, shared_columns, width)[None]
        sees = (intervals[:, :1] < starts + width) & (intervals[:, 1:] > starts)
        pairs = np.argwhere(sees.reshape(-1, size, starts.size).any(1)).astype(np.int32)
        near = np.zeros((len(intervals) // size * starts.size, 2), np.int32)
        near[: len(pairs)] = pairs
        return rows._replace(near=near, nears=np.array(len(pairs), np.int32))


def _int32(values: Iterable[object]) -> Int[np.ndarray, ...]:
    return np.asarray(list(values), np.int32)


def _sampling(requests: Iterable[Request | None]) -> programs.Sampling:
    draws = [GREEDY if request is None else request.draw for request in requests]
    return programs.Sampling(
        np.asarray([draw.temperature for draw in draws], np.float32),
        np.asarray([draw.top_p for draw in draws], np.float32),
        np.asarray([draw.key for draw in draws], np.uint32),
    )
