"""The process: sockets, signals, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from cycleqd_jax.serve.worker import EngineWorker
from cycleqd_jax.types import InputError

__all__ = ["check_address", "run_server", "server_config"]

CONNECTIONS = 512
"""The most connections at a time; the requests of further ones get status 503."""

HEAD_S = 30.0
"""Seconds in which the head of a request must arrive: connections that send nothing hold a place."""

IDLE_S = 5
"""Seconds in which the next request of a connection must begin."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Server(uvicorn.Server):
    """A server whose signals :func:`run_server` handles."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals alone."""
        yield


class _Protocol(H11Protocol):
    """HTTP by h11, which bounds the size of heads; with a bound on the time of each head, and on connections.

    Uvicorn's own limit of connections answers in plain text, and its ``timeout_keep_alive`` ends with the first byte of the
    next head.
    """

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Marks the requests of a connection beyond the limit, which the application refuses."""
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            self.app_state = {**self.app_state, "crowded": True}
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Takes data, and bounds the time of a head that has begun."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._unset_overdue()
        elif before is not None and before.response_complete and self._overdue is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._unset_overdue()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        """Closes the connection later if no further request has come."""
        self._overdue = self.loop.call_later(HEAD_S, self.transport.close)

    def _unset_overdue(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


def run_server(
    app: Starlette, worker: EngineWorker, *, host: str, port: int, grace_s: float, on_ready: Callable[[str], None]
) -> None:
    """Serves until SIGTERM or SIGINT.

    The first signal refuses new requests with status 503 and waits for the accepted ones, at most ``grace_s`` seconds. A second
    signal ends them at once.

    Args:
        app: the application.
        worker: the worker behind it, which has been started.
        host: the address to listen on.
        port: the port; 0 is any free one.
        grace_s: seconds for accepted requests.
        on_ready: called with the address once requests are accepted.

    Raises:
        InputError: the address can't be used.
    """
    with _listen(host, port) as listener:
        asyncio.run(_serve(app, worker, listener, grace_s, on_ready))


def check_address(host: str, port: int) -> None:
    """Checks that an address can be listened on now, before a model is loaded for it.

    Raises:
        InputError: it can't.
    """
    _listen(host, port).close()


def server_config(app: Starlette) -> uvicorn.Config:
    """How the server speaks HTTP: no log of requests, and bounds on connections and headers."""
    return uvicorn.Config(
        app,
        http=_Protocol,
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=64 * 1024,
    )


async def _serve(
    app: Starlette, worker: EngineWorker, listener: socket.socket, grace_s: float, on_ready: Callable[[str], None]
) -> None:
    server, loop, stop = _Server(server_config(app)), asyncio.get_running_loop(), asyncio.Event()
    received = 0

    def on_signal() -> None:
        nonlocal received
        received += 1
        if received > 1:
            worker.abandon()
        stop.set()

    for number in SIGNALS:
        loop.add_signal_handler(number, on_signal)
    try:
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        address, port = listener.getsockname()[:2]
        on_ready(f"http://{f'[{address}]' if ':' in address else address}:{port}")
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait((serving, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if received:
            print("cycleqd: finishing the accepted requests; a second signal ends them", file=sys.stderr, flush=True)
        complete = await asyncio.to_thread(worker.close, grace_s)
        if not complete:
            print(f"cycleqd: requests were ended that were not complete after {grace_s:g} s", file=sys.stderr, flush=True)
        await asyncio.sleep(0.1)  # the last answers are written
        server.should_exit = True
        await serving
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        raise InputError(f"expected an address to listen on, got {error} for {host} port {port}; choose another") from error
    listener.setblocking(False)
    return listener
