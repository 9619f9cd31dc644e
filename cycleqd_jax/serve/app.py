"""The ASGI application."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response

from cycleqd_jax.serve.api import Api, Limits
from cycleqd_jax.serve.catalog import Catalog
from cycleqd_jax.serve.errors import ApiError
from cycleqd_jax.serve.http import Access, error_response
from cycleqd_jax.serve.pages import Pages
from cycleqd_jax.serve.worker import EngineWorker

__all__ = ["make_app"]


def make_app(
    catalog: Catalog, worker: EngineWorker, limits: Limits, *, key: str | None = None, local_only: bool = True
) -> Starlette:
    """The application: OpenAI's endpoints, ``/health``, the page and the report.

    Args:
        catalog: the models.
        worker: decodes; it has been started.
        limits: what a client may ask for.
        key: the key that clients must give, or None.
        local_only: refuse requests whose ``Host`` is not a name of this machine.
    """
    api = Api(catalog, worker, limits)

    async def failed(request: Request, error: Exception) -> Response:
        return error_response(error)

    return Starlette(
        routes=[*api.routes(), *Pages(api).routes()],
        middleware=[Middleware(Access, key=key, local_only=local_only)],
        exception_handlers={ApiError: failed, HTTPException: failed, Exception: failed},
    )
