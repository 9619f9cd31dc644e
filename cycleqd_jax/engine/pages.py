"""The page pool: which pages of the cache are free, and which belong to a slot. Bookkeeping of the host; no arrays."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Iterable

from cycleqd_jax.engine.cache import BLOCK
from cycleqd_jax.engine.layout import EngineLayout, whole_blocks
from cycleqd_jax.engine.scheduler import Slot

__all__ = ["PagePool"]


class PagePool:
    """Hands out pages, the lowest first, so that pages in use stay together.

    Where every slot has exactly one page, no page is handed out.

    Args:
        layout: sizes.

    Attributes:
        size: pages that the cache has.
        free: a heap of free pages. Page 0 is never handed out: rows without a reply write there.
    """

    def __init__(self, layout: EngineLayout) -> None:
        self._layout = layout
        self._lost = 0  # the size of a cache that was lost: the next one is made as large
        self.size = 0
        self.free: list[int] = []

    def forget(self) -> None:
        """Makes all pages free; there must be no slots."""
        self.free = list(range(1, self.size))

    def lose(self) -> None:
        """Records that there is no cache."""
        self._lost = max(self.size, self._lost)
        self.size, self.free = 0, []

    def take(self, slot: Slot, columns: int) -> bool:
        """Gives a slot pages for this many columns, as far as pages are free.

        Returns:
            Whether the slot has enough.
        """
        while self._lacks(slot, columns):
            if not self.free:
                return False
            slot.pages.append(heapq.heappop(self.free))
        return True

    def _lacks(self, slot: Slot, columns: int) -> bool:
        if not self._layout.attention.paged:
            return not self.size
        return len(slot.pages) * self._layout.page < columns

    def larger(self) -> int | None:
        """The next size of the cache, or None if it has its largest."""
        most = self._layout.pages
        if self.size >= most:
            return None
        return min(max(2 * self.size, 2 * BLOCK, self._lost), most) if self._layout.attention.paged else most

    def grow(self, size: int) -> None:
        """Records that the cache has grown."""
        for page in range(max(self.size, 1), size):
            heapq.heappush(self.free, page)
        self.size = size

    def give_back(self, slot: Slot) -> None:
        """Frees the pages of a slot and drops its columns and its conversation."""
        for page in slot.pages:
            heapq.heappush(self.free, page)
        slot.tokens, slot.pages, slot.conversation = [], [], None

    @staticmethod
    def evictable(slots: Iterable[Slot], wanted: Collection[Hashable]) -> Slot:
        """The slot to free when no page is left: the longest idle, those of ``wanted`` conversations last.

        Active slots always have enough pages together, so an idle slot has one.
        """
        idle = (slot for slot in slots if slot.request is None and slot.pages)
        return max(idle, key=lambda slot: (slot.conversation not in wanted, slot.idle))

    def compact(self, active: Iterable[Slot], slots: Iterable[Slot]) -> list[tuple[int, int]]:
        """Moves the pages of active slots to the beginning of the pool, if the pages between them cost time.

        Args:
            active: slots whose pages a decode step reads.
            slots: all slots; their pages are renumbered.

        Returns:
            Pairs of pages to swap in the cache.
        """
        used = [page for slot in active for page in slot.pages]
        needed = 1 + len(used)
        if max(used) < whole_blocks(needed) + BLOCK or 2 * max(used) < 3 * needed:
            return []
        taken = set(used)
        places = (page for page in range(1, needed) if page not in taken)
        pairs = list(zip((page for page in used if page >= needed), places, strict=True))
        moved = dict(pairs) | {b: a for a, b in pairs}
        for slot in slots:
            slot.pages = [moved.get(page, page) for page in slot.pages]
        self.free = [moved.get(page, page) for page in self.free]
        heapq.heapify(self.free)
        return pairs
