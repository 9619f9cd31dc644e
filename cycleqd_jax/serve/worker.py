"""The thread that owns the engine: requests come and go while it decodes."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from cycleqd_jax.engine import Engine, ReplyText, TokenLogprobs
from cycleqd_jax.models.tokenizer import ChatTokenizer
from cycleqd_jax.serve.jobs import Job, QueueFull, Scored, ServerClosed, Ticket
from cycleqd_jax.serve.turns import Turns

__all__ = ["TURN", "EngineWorker", "Load", "WorkerState"]

TURN = 64
"""Host syncs of a model's turn where other models wait (:mod:`cycleqd_jax.serve.turns`)."""

LAST_STEP_S = 60.0
"""Seconds for the last step of a worker that is closed: it may be expressing a model."""

Load = Callable[[Hashable], None]
"""Makes the engine use the weights of a model. It runs in the engine's thread and may raise anything."""


@dataclasses.dataclass
class WorkerState:
    """What the worker does.

    Attributes:
        running: replies that are being decoded.
        waiting: replies that wait for a slot or for their model.
        served: replies that were completed.
        cancelled: replies whose client went away.
        failed: replies that ended with an error.
        switches: how often other weights were loaded.
    """

    running: int = 0
    waiting: int = 0
    served: int = 0
    cancelled: int = 0
    failed: int = 0
    switches: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Running:
    ticket: Ticket
    text: ReplyText


class _Ended(NamedTuple):
    """A reply whose tokens are complete."""

    ticket: Ticket
    text: str
    ids: tuple[int, ...]
    finish: str


class EngineWorker:
    """Decodes jobs of several models with one engine, in a thread of its own.

    :meth:`submit`, :meth:`cancel`, :meth:`state` and :meth:`close` may be called from any thread. The engine and ``load`` are
    used in the worker's thread only. The order in which jobs are decoded is described in :mod:`cycleqd_jax.serve.turns`.

    Args:
        engine: an engine that no one else uses.
        tokenizer: the tokenizer of its models.
        load: makes the engine use the weights of a model.
        waiting: the most jobs that wait while all slots are in use.
        turn: host syncs of a turn.
        loaded: the model whose weights the engine has already.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: ChatTokenizer,
        load: Load,
        *,
        waiting: int = 64,
        turn: int = TURN,
        loaded: Hashable = None,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._load = load
        self._limit = waiting
        self._wake = threading.Condition()
        self._turns = Turns(turn)
        self._dropped: list[Ticket] = []  # running, to be taken from the engine
        self._closing = False
        self._stopped = False
        self._complete = False  # whether the thread ended with nothing left
        self._running: dict[int, _Running] = {}  # by the number of the engine's request
        self._loaded = loaded
        self._state = WorkerState()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def capacity(self) -> int:
        """The largest number of jobs: the slots of the engine and the length of the queue."""
        return self._engine.slots + self._limit

    @property
    def open(self) -> bool:
        """Whether jobs are accepted."""
        return not self._closing and not self._stopped

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, jobs: Sequence[Job], on_change: Callable[[], None] = lambda: None) -> list[Ticket]:
        """Queues jobs, all of them or none.

        Args:
            jobs: checked by the caller: prompts that leave room for a token, ids of the vocabulary.
            on_change: called in the worker's thread when there is something new of a reply; it must not block.

        Returns:
            A ticket for each job.

        Raises:
            QueueFull: too many jobs are waiting.
            ServerClosed: :meth:`close` was called, or the worker's thread has failed.
        """
        tickets = [Ticket(job, on_change) for job in jobs]
        with self._wake:
            if not self.open:
                raise ServerClosed("expected a server that accepts requests, got one that is stopping; try again later")
            accepted = len(self._turns) + len(self._running)
            if accepted + len(tickets) > self.capacity:
                raise QueueFull(
                    f"expected at most {self.capacity} replies at a time, got {len(tickets)} more beside {accepted}; try "
                    "again later"
                )
            self._turns.add(tickets)
            self._wake.notify_all()
        return tickets

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Drops replies that no client waits for; complete ones are left as they are."""
        with self._wake:
            for ticket in tickets:
                if ticket.done:
                    continue
                if self._turns.remove(ticket):
                    self._state.cancelled += 1
                else:
                    self._dropped.append(ticket)
            self._wake.notify_all()

    def state(self) -> WorkerState:
        """What the worker does now."""
        with self._wake:
            return dataclasses.replace(self._state, running=len(self._running), waiting=len(self._turns))

    def close(self, seconds: float) -> bool:
        """Refuses new jobs, waits until the accepted ones are complete, and ends the thread.

        Args:
            seconds: how long to wait; then the replies that are left fail with :class:`ServerClosed`.

        Returns:
            Whether all replies were completed.
        """
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        deadline = time.monotonic() + seconds
        self._thread.join(max(seconds, 0))
        self.abandon()
        self._thread.join(max(deadline + LAST_STEP_S - time.monotonic(), 0))
        return self._complete

    def abandon(self) -> None:
        """Ends the thread after its current step; replies that are not complete fail with :class:`ServerClosed`."""
        with self._wake:
            self._stopped = True
            self._wake.notify_all()

    # The thread

    def _run(self) -> None:
        error: Exception = ServerClosed(
            "expected a complete reply, got a part of it before the server stopped; try again later"
        )
        try:
            while self._wait():
                self.step()
        except Exception as unexpected:  # a fault of this package: clients get an answer, and the server reports its state
            error = unexpected
            raise
        finally:
            with self._wake:
                self._stopped = True
                left = self._turns.clear()
                self._complete = not left and not self._running
            self._fail(left, error)
            self._fail_running(error)
            self._engine.unload()

    def _wait(self) -> bool:
        """Waits for work; returns whether to go on."""
        with self._wake:
            while not (self._stopped or self._running or self._dropped or len(self._turns) or self._closing):
                self._wake.wait()
            return not self._stopped and bool(self._running or self._dropped or len(self._turns))

    def step(self) -> None:
        """One host sync: drops what was cancelled, starts waiting jobs, decodes, scores, and hands out what is new."""
        self._drop()
        ended = self._admit()
        if not self._running and not ended:
            return
        try:
            done = self._engine.advance()
        except Exception as error:  # of the model or the device; the engine has dropped its requests and can go on
            self._fail([one.ticket for one in ended], error)
            self._fail_running(error)
            return
        finally:
            with self._wake:
                self._turns.count_sync()
        for number, generation in done:
            with self._wake:
                one = self._running.pop(number)
            self._engine.release(one.ticket)  # no other turn follows
            ended.append(_Ended(one.ticket, one.text.end(), generation.ids, generation.finish))
        self._end(ended)

    def _end(self, ended: Sequence[_Ended]) -> None:
        """Completes replies. If a request asks for log-probabilities, its reply is scored in the slot that it has left."""
        wanted = [one for one in ended if one.ticket.job.logprobs is not None]
        scored: dict[int, Scored] = {}
        if wanted:
            most = max(one.ticket.job.logprobs or 0 for one in wanted)
            try:
                found = self._engine.token_logprobs([one.ticket.job.prompt + one.ids for one in wanted], top=most)
            except Exception as error:
                self._fail([one.ticket for one in wanted], error)
                ended = [one for one in ended if one not in wanted]
                self._fail_running(error)
            else:
                scored = {id(one.ticket): _scored(one, values) for one, values in zip(wanted, found, strict=True)}
        with self._wake:
            self._state.served += len(ended)
        for one in ended:
            one.ticket.add(one.text, len(one.ids), one.finish, scored.get(id(one.ticket)))

    def _drop(self) -> None:
        with self._wake:
            dropped, self._dropped = self._dropped, []
            numbers = {id(one.ticket): number for number, one in self._running.items()}
        for ticket in dropped:
            self._engine.release(ticket)  # the ticket names the conversation
            number = numbers.get(id(ticket))
            if number is not None:
                with self._wake:
                    if self._running.pop(number, None) is not None:
                        self._state.cancelled += 1

    def _admit(self) -> list[_Ended]:
        """Starts waiting jobs. Returns the jobs with ``max_new_tokens=0``, which are complete at once."""
        with self._wake:
            if not self._running:
                if not self._turns.change():
                    return []
                model = self._turns.current
            else:
                model = self._loaded
        if model != self._loaded or self._loaded is None:
            try:
                self._loaded = None
                self._load(model)
                self._loaded = model
                self._state.switches += 1
            except Exception as error:  # this model can't be served; the others can
                with self._wake:
                    failed = self._turns.take_current()
                self._fail(failed, error)
                return []
        with self._wake:
            started = self._turns.start(self._engine.slots - len(self._running))
        ended = []
        for ticket in started:
            if ticket.job.echo:
                ticket.add(ticket.job.echo, 0)
            if ticket.job.max_new_tokens:
                self._begin(ticket)
            else:
                ended.append(_Ended(ticket, "", (), "length"))
        return ended

    def _begin(self, ticket: Ticket) -> None:
        job = ticket.job
        text = ReplyText(self._tokenizer.decode, job.stop, self._engine.stop_ids, job.prompt if job.continues else ())

        def stop_when(ids: Sequence[int]) -> int | None:
            new, kept = text.take(ids)
            if new:
                ticket.add(new, len(ids) if kept is None else kept)
            return kept

        try:
            number = self._engine.submit(
                job.prompt,
                job.max_new_tokens,
                conversation=ticket,
                temperature=job.temperature,
                top_p=job.top_p,
                seed=job.seed,
                stop_when=stop_when,
            )
        except Exception as error:  # of the job or the device; otherwise its client would wait without end
            self._fail([ticket], error)
            return
        with self._wake:
            self._running[number] = _Running(ticket, text)

    def _fail(self, tickets: Sequence[Ticket], error: Exception) -> None:
        with self._wake:
            self._state.failed += len(tickets)
        for ticket in tickets:
            ticket.fail(error)

    def _fail_running(self, error: Exception) -> None:
        with self._wake:
            running, self._running = list(self._running.values()), {}
        self._fail([one.ticket for one in running], error)


def _scored(one: _Ended, values: TokenLogprobs) -> Scored:
    """The log-probabilities of a reply, and of its prompt if that is echoed."""
    job = one.ticket.job
    tokens, logprobs, top = job.prompt + one.ids, (None, *values.logprobs), ((), *values.top)
    start = len(job.prompt) if job.echo is None else 0
    return Scored(tokens[start:], logprobs[start:], top[start:], len(job.prompt) - start)
