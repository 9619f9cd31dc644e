"""Which model's requests are decoded next.

The engine holds the weights of one model at a time. The policy:

- Models with waiting requests form a ring, in the order in which they began to wait. The first of them gets a turn.
- In its turn the model's requests start in the order of their arrival, as slots become free.
- Once requests of other models wait, the turn ends after ``turn`` host syncs. Requests that are being decoded are finished, and
  no more of them are started. A model that still has waiting requests goes to the end of the ring.

So a model waits at most for one turn of each model before it in the ring, and a turn is as long as ``turn`` host syncs and the
longest reply. Nothing depends on time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator

from cycleqd_jax.serve.jobs import Ticket

__all__ = ["Turns"]


class Turns:
    """The waiting requests by model, and whose turn it is. Not thread-safe.

    Args:
        turn: host syncs after which a turn ends where other models wait.

    Attributes:
        current: the model whose turn it is; None before the first.
    """

    def __init__(self, turn: int) -> None:
        self.current: Hashable = None
        self._turn = turn
        self._used = 0
        self._queues: dict[Hashable, deque[Ticket]] = {}  # the ring; no queue is empty

    def __len__(self) -> int:
        """The number of waiting requests."""
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Ticket]:
        """All waiting requests."""
        return iter([ticket for queue in self._queues.values() for ticket in queue])

    def add(self, tickets: Iterable[Ticket]) -> None:
        """Puts requests at the end of the queues of their models."""
        for ticket in tickets:
            self._queues.setdefault(ticket.job.model, deque()).append(ticket)

    def remove(self, ticket: Ticket) -> bool:
        """Removes a request; returns whether it was waiting."""
        queue = self._queues.get(ticket.job.model)
        if queue is None or ticket not in queue:
            return False
        queue.remove(ticket)
        self._drop_empty(ticket.job.model)
        return True

    def clear(self) -> list[Ticket]:
        """Removes and returns all requests."""
        found = list(self)
        self._queues.clear()
        return found

    def count_sync(self) -> None:
        """Counts a host sync of the current turn; only those count during which another model waits."""
        self._used = self._used + 1 if self._others_wait else 0

    def change(self) -> bool:
        """Gives the turn to the next model in the ring; nothing may be running.

        Returns:
            Whether any model waits.
        """
        if self.current in self._queues and (self._others_wait and self._used >= self._turn):
            self._queues[self.current] = self._queues.pop(self.current)
        if self.current not in self._queues or (self._others_wait and self._used >= self._turn):
            self.current = next(iter(self._queues), self.current)
            self._used = 0
        return bool(self._queues)

    def start(self, room: int) -> list[Ticket]:
        """Takes up to ``room`` requests of the current model from its queue; none once its turn is over."""
        if self._others_wait and self._used >= self._turn:
            return []
        queue = self._queues.get(self.current)
        found = [queue.popleft() for _ in range(min(room, len(queue)))] if queue is not None else []
        self._drop_empty(self.current)
        return found

    def take_current(self) -> list[Ticket]:
        """Takes all waiting requests of the current model."""
        return list(self._queues.pop(self.current, ()))

    @property
    def _others_wait(self) -> bool:
        return len(self._queues) > (self.current in self._queues)

    def _drop_empty(self, model: Hashable) -> None:
        if model in self._queues and not self._queues[model]:
            del self._queues[model]
