"""The address of a MySQL or MariaDB server."""

from __future__ import annotations

import dataclasses
from urllib.parse import parse_qs, unquote, urlsplit

from cycleqd_jax.types import InputError

__all__ = ["Address"]

_FORM = "mysql://user:password@host:port or mysql://user:password@/?unix_socket=/path"


@dataclasses.dataclass(frozen=True)
class Address:
    """The address of a server and the account to use there.

    Attributes:
        host: name or address; empty for a socket.
        port: TCP port.
        socket: path of a Unix socket, or None.
        user: an account that may create schemas and users.
        password: its password.
        ssl_ca: file with the certificates that must have signed the server's certificate; None accepts any certificate, as
            MySQL's own clients do.
    """

    host: str
    port: int
    socket: str | None
    user: str
    password: str = dataclasses.field(repr=False)
    ssl_ca: str | None = None

    @classmethod
    def parse(cls, where: str, dsn: str) -> Address:
        """Parses ``mysql://user:password@host:port`` or ``mysql://user:password@/?unix_socket=/path``.

        Special characters in names and passwords are percent-encoded (``%40`` for @). ``?ssl_ca=/path`` requires a signed
        certificate.

        Args:
            where: where the address was given, for messages.
            dsn: the address.

        Raises:
            InputError: the address has another form. The message does not repeat the password.
        """

        def error(got: str) -> InputError:
            return InputError(f"expected {_FORM}, got {got} in {where}; correct the address")

        try:
            parts = urlsplit(dsn)
            query = parse_qs(parts.query, strict_parsing=bool(parts.query))
            port = parts.port
        except ValueError:
            raise error("another form of text") from None
        unknown = sorted(set(query) - {"unix_socket", "ssl_ca"})
        if parts.scheme != "mysql" or not parts.username or unknown or parts.path not in ("", "/") or parts.fragment:
            raise error(f"the unknown settings {', '.join(unknown)}" if unknown else "another form of text")
        path = query.get("unix_socket", [None])[-1]
        if not parts.hostname and not path:
            raise error("an address without host and socket")
        return cls(
            host=parts.hostname or "",
            port=port or 3306,
            socket=path,
            user=unquote(parts.username),
            password=unquote(parts.password or ""),
            ssl_ca=query.get("ssl_ca", [None])[-1],
        )

    @property
    def place(self) -> str:
        """The socket, or host and port, for messages."""
        return self.socket or f"{self.host}:{self.port}"
