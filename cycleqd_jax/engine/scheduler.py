"""The scheduler: which request gets which slot.

Requests are served in the order of their arrival, with two exceptions: the next turn of a conversation that has had a slot goes
before other requests, and a request that has waited for :data:`PATIENCE` host syncs goes first. Nothing depends on time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable

from cycleqd_jax.engine.requests import Request

__all__ = ["PATIENCE", "Scheduler", "Slot"]

PATIENCE = 64  # host syncs after which a waiting request has priority over open conversations


@dataclasses.dataclass(eq=False)
class Slot:
    """A place in the cache for a conversation.

    Attributes:
        row: its page, where every slot has exactly one; unused where conversations have several pages.
        tokens: the tokens in its columns, which continue the shared columns.
        pages: its pages of the pool, in the order of the columns.
        shared: the shared columns that its own continue: start and end of the interval.
        individual: the individual whose weights computed the columns.
        request: the request that is being decoded, or None.
        conversation: the conversation for whose next turn the columns are kept, or None.
        idle: host syncs since the slot last had a request.
    """

    row: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    pages: list[int] = dataclasses.field(default_factory=list)
    shared: tuple[int, int] = (0, 0)
    individual: int = 0
    request: Request | None = None
    conversation: Hashable = None
    idle: int = 0

    @property
    def live(self) -> bool:
        """Whether the slot has a request, or keeps the columns of a conversation."""
        return self.request is not None or self.conversation is not None


class Scheduler:
    """The queue, and the slots.

    Args:
        slots: the most requests that are decoded at the same time.
        paged: whether idle conversations may keep their columns beside ``slots`` active ones. Otherwise there are exactly
            ``slots`` slots, and the conversation that has been idle longest gives way to a waiting request.
        keep_conversations: whether the columns of a conversation are kept for its next turn.
    """

    def __init__(self, slots: int, *, paged: bool, keep_conversations: bool) -> None:
        self._most = slots
        self._paged = paged
        self._keep = keep_conversations
        self.forget()

    def forget(self) -> None:
        """Drops all requests and conversations."""
        self.slots: list[Slot] = [] if self._paged else [Slot(row) for row in range(self._most)]
        self.queue: list[Request] = []
        self._waiting: set[Hashable] = set()  # conversations with a request that is queued or being decoded
        self._begun: set[Hashable] = set()  # conversations that have had a slot

    @property
    def busy(self) -> bool:
        """Whether a request is queued or being decoded."""
        return bool(self.queue) or any(slot.request is not None for slot in self.slots)

    @property
    def has_room(self) -> bool:
        """Whether nothing is queued, and a slot has no request."""
        return not self.queue and sum(slot.request is not None for slot in self.slots) < self._most

    @property
    def live(self) -> bool:
        """Whether any slot has a request or keeps a conversation."""
        return any(slot.live for slot in self.slots)

    @property
    def active(self) -> list[Slot]:
        """Slots with a request. With pages, slots with the same shared prefix are next to each other."""
        active = [slot for slot in self.slots if slot.request is not None]
        return sorted(active, key=lambda slot: slot.shared) if self._paged else active

    def waits(self, conversation: Hashable) -> bool:
        """Whether the conversation has a request that is queued or being decoded."""
        return conversation in self._waiting

    def add(self, request: Request) -> None:
        """Puts a request into the queue."""
        if request.conversation is not None:
            self._waiting.add(request.conversation)
        self.queue.append(request)

    def assign(self) -> list[tuple[Request, Slot]]:
        """Chooses slots for as many queued requests as possible.

        The requests stay in the queue until :meth:`start`.

        Returns:
            Requests and their slots, in the order in which they are to be started.
        """
        # Fewer conversations are open, and in the cache, if those that have begun are finished first.
        self.queue.sort(key=lambda request: request.conversation not in self._begun)
        late = max(self.queue, key=lambda request: request.waited, default=None)
        if late is not None and late.waited >= PATIENCE:  # one per host sync: not all of them begin at once
            self.queue.remove(late)
            self.queue.insert(0, late)
        idle = [slot for slot in self.slots if slot.request is None]
        chosen = self._choose(idle, room=self._most - (len(self.slots) - len(idle)))
        for request in self.queue[len(chosen) :]:
            request.waited += 1
        return list(zip(self.queue, chosen, strict=False))

    def _choose(self, idle: Iterable[Slot], room: int) -> list[Slot]:
        """A slot for each of the first ``room`` requests: its conversation's own, a free one, or the longest idle."""
        own = {slot.conversation: slot for slot in idle if slot.conversation is not None}
        free = [slot for slot in idle if slot.conversation is None][::-1]
        asked = {request.conversation for request in self.queue}
        oldest = sorted(own.values(), key=lambda slot: (slot.conversation not in asked, slot.idle))
        chosen: list[Slot] = []
        taken: set[int] = set()
        for request in self.queue[:room]:
            slot = None if request.conversation is None else own.get(request.conversation)
            while slot is None or id(slot) in taken:
                if free:
                    slot = free.pop()
                elif self._paged:
                    slot = Slot()
                    self.slots.append(slot)
                else:
                    slot = oldest.pop()
            taken.add(id(slot))
            chosen.append(slot)
        return chosen

    def start(self, request: Request, slot: Slot) -> None:
        """Moves a request from the queue to its slot."""
        self.queue.remove(request)
        if request.conversation is not None:
            self._begun.add(request.conversation)
        slot.request, slot.individual, slot.idle = request, request.individual, 0
        slot.conversation = request.conversation if self._keep else None

    def finish(self, slot: Slot) -> None:
        """Ends the request of a slot; its conversation, if there is one, becomes idle."""
        assert slot.request is not None
        self._waiting.discard(slot.request.conversation)
        slot.request = None

    def count_idle(self) -> None:
        """Counts a host sync for every slot without a request."""
        for slot in self.slots:
            slot.idle = 0 if slot.request is not None else slot.idle + 1

    def release(self, conversation: Hashable) -> list[Slot]:
        """Ends a conversation and drops its request.

        Returns:
            Slots whose columns are no longer needed.
        """
        self._waiting.discard(conversation)
        self._begun.discard(conversation)
        self.queue = [request for request in self.queue if request.conversation != conversation]
        ended = []
        for slot in self.slots:
            if conversation in (slot.conversation, None if slot.request is None else slot.request.conversation):
                slot.request = None
                ended.append(slot)
        return ended

    def drop_requests(self) -> list[Slot]:
        """Drops all requests, and keeps idle conversations.

        Returns:
            Slots whose columns are no longer needed.
        """
        self.queue = []
        self._waiting.clear()
        ended = [slot for slot in self.slots if slot.request is not None]
        for slot in ended:
            slot.request = None
        self._begun &= {slot.conversation for slot in self.slots if slot not in ended}
        return ended
