"""The page of the server, where models are asked, and the report of the run."""

from __future__ import annotations

import asyncio
import importlib.resources
import time
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from cycleqd_jax.report import write_report
from cycleqd_jax.serve.api import Api
from cycleqd_jax.serve.errors import ApiError
from cycleqd_jax.serve.http import COOKIE, Access, Json, read_body
from cycleqd_jax.serve.parameters import parse_json
from cycleqd_jax.types import InputError

__all__ = ["Pages"]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
FILES = {"page.js": "text/javascript", "page.css": "text/css"}
REBUILD_S = 10.0
"""The least seconds between two builds of the report."""


class Pages:
    """The page at ``/``, its files, the session, and the report at ``/report``.

    Args:
        api: the endpoints that the page uses.
    """

    def __init__(self, api: Api) -> None:
        self._api = api
        self._folder = importlib.resources.files("cycleqd_jax.serve") / "page"
        self._building = asyncio.Lock()
        self._built: tuple[tuple[int, int], ...] | None = None
        self._built_at = 0.0

    def routes(self) -> list[Route]:
        """Paths and their endpoints."""
        return [
            Route("/", self.page),
            Route("/static/{name}", self.file),
            Route("/session", self.session, methods=["POST"]),
            Route("/report", self.report),
            Route("/report/state", self.state),
        ]

    async def page(self, request: Request) -> Response:
        """The page."""
        return HTMLResponse((self._folder / "page.html").read_text("utf-8"), headers={"Content-Security-Policy": POLICY})

    async def file(self, request: Request) -> Response:
        """Script and style of the page."""
        name = request.path_params["name"]
        if name not in FILES:
            raise ApiError(404, "expected page.js or page.css, got another file; reload the page")
        return Response((self._folder / name).read_text("utf-8"), media_type=FILES[name])

    async def session(self, request: Request) -> Response:
        """Checks a key, and gives a cookie with which the page may use the server."""
        key = parse_json(await read_body(request, 10_000)).get("key")
        access: Access = request.state.access
        if not isinstance(key, str) or not access.accepts(key):
            raise ApiError(401, "expected the server's key, got another; give the right one", type="authentication_error")
        answer = Json({"status": "ok"})
        answer.set_cookie(COOKIE, access.session, httponly=True, samesite="strict", secure=request.url.scheme == "https")
        return answer

    async def state(self, request: Request) -> Response:
        """The name of what is served, and how far the run is; ``version`` changes when ``/report`` would show more."""
        run = self._api.catalog.run
        version = None
        if run is not None:
            stamp = _stamp(run) if self._built is None or self._due else self._built
            version = ":".join(f"{size}-{time}" for size, time in stamp)
        return Json({"name": self._api.catalog.name, "run": run is not None, "version": version})

    async def report(self, request: Request) -> Response:
        """The report of the run, built again where the run has grown; at most every ten seconds."""
        run = self._api.catalog.run
        if run is None:
            raise ApiError(404, "expected a server of a run, got one of a single model; start it with a run folder")
        async with self._building:
            stamp = _stamp(run)
            if self._built is None or (stamp != self._built and self._due):
                try:
                    await asyncio.to_thread(write_report, run)
                except (InputError, OSError) as error:  # a folder may be read-only
                    failed = f"expected to write the report, got: {error}; correct the cause"
                    message = str(error) if isinstance(error, InputError) else failed
                    raise ApiError(503, message, type="server_error", code="unavailable") from error
                self._built, self._built_at = stamp, time.monotonic()
            text = (run / "report.html").read_text("utf-8")
        # The page's own policy allows its script by hash; here others are kept from framing it.
        headers = {"Content-Security-Policy": "frame-ancestors 'self'", "Cache-Control": "no-store"}
        return HTMLResponse(text, headers=headers)

    @property
    def _due(self) -> bool:
        """Whether the report may be built again."""
        return time.monotonic() - self._built_at >= REBUILD_S


def _stamp(run: Path) -> tuple[tuple[int, int], ...]:
    """Sizes and times of the files that the report grows with."""
    found = []
    for name in ("history.jsonl", "tables/results.json", "tables/selection.json"):
        try:
            stat = (run / name).stat()
            found.append((stat.st_size, stat.st_mtime_ns))
        except OSError:
            found.append((0, 0))
    return tuple(found)
