"""Errors in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

__all__ = ["ApiError", "invalid", "too_many", "unavailable", "unsupported"]


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: the HTTP status code.
        headers: the HTTP headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Args:
        status: the HTTP status code.
        message: one sentence.
        type: OpenAI's class of errors.
        param: the key of the request that is wrong.
        code: for programs.
        headers: the HTTP headers of the answer.
        """  # noqa: D205
        super().__init__(message)
        self.status = status
        self.headers = headers
        self._type, self._param, self._code = type, param, code

    def body(self) -> dict[str, Any]:
        """The body: ``{"error": {"message", "type", "param", "code"}}``."""
        return {"error": {"message": str(self), "type": self._type, "param": self._param, "code": self._code}}


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A request with a wrong value."""
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
    """A request for what this server can't do."""
    return ApiError(400, message, param=param, code="unsupported_parameter")


def too_many(message: str) -> ApiError:
    """Too many requests wait; the client may try again."""
    return ApiError(429, message, type="rate_limit_error", code="queue_full", headers={"Retry-After": "1"})


def internal_error() -> ApiError:
    """A fault of this package; the log has it."""
    message = "expected an answer, got an unexpected error in the server; read its log"
    return ApiError(500, message, type="server_error", code="internal_error")


def unavailable(message: str) -> ApiError:
    """The server is stopping, or broken."""
    return ApiError(503, message, type="server_error", code="unavailable", headers={"Retry-After": "5"})
