"""JSON messages over a stream socket: four bytes with the length, then the message."""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

__all__ = ["MAX_FRAME", "decode", "recv", "send"]

MAX_FRAME = 256 << 20
_HEAD = struct.Struct("!I")


def send(sock: socket.socket, message: Any) -> None:
    """Sends one message, and blocks until the socket has accepted it.

    Raises:
        OSError: if the other side has ended, or after the timeout of the socket.
    """
    data = json.dumps(message).encode("ascii")
    sock.sendall(_HEAD.pack(len(data)) + data)


def recv(sock: socket.socket) -> Any:
    """Receives the next message.

    Raises:
        EOFError: if the other side has ended, or has sent no message.
        OSError: if the socket fails, or after its timeout.
    """
    (size,) = _HEAD.unpack(_exactly(sock, _HEAD.size))
    if size > MAX_FRAME:
        raise EOFError(f"a message of {size} bytes, which is more than {MAX_FRAME}")
    try:
        return decode(_exactly(sock, size))
    except (ValueError, RecursionError) as error:
        raise EOFError(f"a message that is no JSON ({error})") from error


def decode(data: bytes) -> Any:
    """Parses a message."""
    return json.loads(data)


def _exactly(sock: socket.socket, size: int) -> bytes:
    chunks = []
    while size:
        chunk = sock.recv(min(size, 1 << 20))
        if not chunk:
            raise EOFError("the other side has ended")
        chunks.append(chunk)
        size -= len(chunk)
    return b"".join(chunks)
