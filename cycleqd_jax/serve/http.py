"""What every answer over HTTP has in common: errors as JSON, limits of bodies, disconnected and slow clients, access."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cycleqd_jax.serve.errors import ApiError, internal_error, unavailable
from cycleqd_jax.serve.replies import to_bytes

__all__ = ["Access", "EventStream", "Json", "disconnected", "error_response", "is_loopback", "read_body", "until_disconnect"]

COOKIE = "cycleqd_session"
BODY_S = 30.0
"""Seconds in which a body must arrive."""

DISCARDED = 2**24
"""Bytes of a body that is too large that are read and dropped, so that the client reads the answer instead of a reset."""

OPEN_PATHS = ("/", "/health", "/session")
"""Paths that need no key: they show nothing of models and run."""

log = logging.getLogger("cycleqd_jax.serve")


def is_loopback(host: str) -> bool:
    """Whether a host's address is reached from this machine only: ``localhost``, ``::1``, or one of ``127.0.0.0/8``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Json(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The bytes of a value."""
        return to_bytes(content)


def error_response(error: Exception) -> Json:
    """The answer for an exception."""
    if isinstance(error, HTTPException):  # of the router
        headers = dict(error.headers or {})  # of 405 the methods that the path has
        error = ApiError(
            error.status_code, f"expected a known path and method, got {error.detail}; see the documentation", headers=headers
        )
    if not isinstance(error, ApiError):
        error = internal_error()
    return Json(error.body(), error.status, error.headers)


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request with JSON.

    Raises:
        ApiError: it is too large, comes too slowly, breaks off, or is of another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a page of another site can't send this type without asking first
        raise ApiError(415, f"expected Content-Type application/json, got {kind[:80] or 'none'!r}; set the header")
    declared = request.headers.get("content-length", "0")
    too_large = declared.isdecimal() and int(declared[:20]) > limit
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                size += len(part)
                too_large = too_large or size > limit
                if not too_large:
                    parts.append(part)
                elif size > max(limit, DISCARDED):
                    break
    except ClientDisconnect:
        raise ApiError(400, "expected a whole body, got a part of it; send it again") from None  # the client reads no answer
    except TimeoutError:
        if not too_large:
            message = f"expected the whole body within {BODY_S:.0f} s, got a part of it; send it faster"
            raise ApiError(408, message) from None
    if too_large:
        headers = {"Connection": "close"}
        message = f"expected a body of at most {limit} bytes, got more; shorten it"
        raise ApiError(413, message, code="body_too_large", headers=headers)
    return b"".join(parts)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has closed the connection; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def until_disconnect(receive: Receive, work: Awaitable[Any]) -> Any:
    """The result of ``work``, which is cancelled when the client closes the connection.

    Raises:
        ConnectionResetError: the client has closed the connection.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ConnectionResetError("expected an open connection, got one that the client has closed; send the request again")
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


class EventStream(Response):
    """Server-sent events, one for each value, until the client disconnects or does not read for ``stall_s`` seconds.

    Args:
        values: what to send.
        stall_s: how long a client may leave a full socket unread.
        on_close: called at the end, whatever ends the stream.
    """

    media_type = "text/event-stream"

    def __init__(self, values: AsyncIterator[Any], stall_s: float, on_close: Callable[[], None]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._values = values
        self._stall_s = stall_s
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the stream."""
        try:
            await until_disconnect(receive, self._send(send))
        except (ConnectionResetError, TimeoutError):
            log.info("a client went away, or did not read its stream")
        finally:
            self._on_close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for value in self._values:
            await self._part(send, b"data: " + to_bytes(value) + b"\n\n")
        await self._part(send, b"data: [DONE]\n\n")
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _part(self, send: Send, body: bytes) -> None:
        async with asyncio.timeout(self._stall_s):
            await send({"type": "http.response.body", "body": body, "more_body": True})


class Access:
    """Middleware that checks the host's name and the key, and sets headers of security.

    A key comes as ``Authorization: Bearer KEY``, or as the cookie that ``POST /session`` gives to the page. The cookie holds a
    random word of this server, not the key.

    Args:
        app: the application.
        key: the key, or None.
        local_only: whether only names of this machine are accepted as ``Host``: where the server listens on loopback, pages of
            other sites can't reach it under a name of their own.
    """

    def __init__(self, app: ASGIApp, *, key: str | None, local_only: bool) -> None:
        self._app = app
        self._key = key
        self._local_only = local_only
        self.session = secrets.token_urlsafe(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        scope.setdefault("state", {})["access"] = self
        refusal = self._refusal(request)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": headers}
            await send(message)

        if refusal is not None:
            await error_response(refusal)(scope, receive, guarded)
        else:
            await self._app(scope, receive, guarded)

    def accepts(self, key: str) -> bool:
        """Whether a key is the server's; compared in constant time."""
        return self._key is None or hmac.compare_digest(key.encode("utf-8", "replace"), self._key.encode("utf-8", "replace"))

    def _refusal(self, request: Request) -> ApiError | None:
        if request.scope["state"].get("crowded"):
            error = unavailable("expected fewer connections, got more than the server accepts; try again later")
            error.headers = {**(error.headers or {}), "Connection": "close"}
            return error
        if self._local_only:
            host = request.headers.get("host", "")
            name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
            if not is_loopback(name.lower()):
                return ApiError(403, "expected a name of this machine as Host, got another; use localhost or 127.0.0.1")
        path = request.scope["path"]  # the router's; older releases of Starlette read the path of request.url from Host
        if self._key is None or path in OPEN_PATHS or path.startswith("/static/"):
            return None
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.accepts(given.strip()):
            return None
        cookie = request.cookies.get(COOKIE, "")
        if hmac.compare_digest(cookie.encode("utf-8", "replace"), self.session.encode()):
            return None
        return ApiError(
            401,
            "expected the server's key as Authorization: Bearer KEY, got none or another; give the right one",
            type="authentication_error",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
