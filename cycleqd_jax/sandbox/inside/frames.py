"""JSON messages over a stream socket: four bytes of length, then the message."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

__all__ = ["MAX_FRAME", "decode", "recv", "send"]

MAX_FRAME = 256 << 20
_HEAD = struct.Struct("!I")


def send(sock: socket.socket, message: Any) -> None:
    """Sends one message; blocks until the other side has taken it.

    Raises:
        OSError: the other side is gone, or the socket's timeout passed.
    """
    data = json.dumps(message).encode("ascii")
    sock.sendall(_HEAD.pack(len(data)) + data)


def recv(sock: socket.socket) -> Any:
    """The next message.

    Raises:
        EOFError: the other side is gone.
        OSError: the socket failed, or its timeout passed.
    """
    (size,) = _HEAD.unpack(_exactly(sock, _HEAD.size))
    if size > MAX_FRAME:
        raise EOFError(f"a message of {size} bytes")
    return decode(_exactly(sock, size))


def decode(data: bytes) -> Any:
    """The message that ``data`` spells."""
    return json.loads(data)


def _exactly(sock: socket.socket, size: int) -> bytes:
    chunks = []
    while size:
        chunk = sock.recv(min(size, 1 << 20))
        if not chunk:
            raise EOFError("the other side is gone")
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)
