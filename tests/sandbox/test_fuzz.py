"""Any bytes on the channels of the sandbox give a message, a text or the documented error."""

from __future__ import annotations

import json
import os
import socket

from hypothesis import strategies as st

from cycleqd_jax.sandbox import InfraError, Killed
from cycleqd_jax.sandbox.inside import frames
from cycleqd_jax.sandbox.inside.output import Output
from cycleqd_jax.sandbox.inside.stdin import open_input
from cycleqd_jax.sandbox.worker import ask

from ..fuzz import fuzzed, json_values


def frame(message) -> bytes:
    data = json.dumps(message).encode()
    return len(data).to_bytes(4, "big") + data


FRAMES = st.one_of(
    json_values().map(frame),
    st.sampled_from([{"killed": "x"}, {"infra": "x"}, {"ready": True}, {}]).map(frame),
    st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\0\0\0\x02{]", b"\0\0\0\x04\xff\xfe\xff\xfe", b"\x10\0\0\1x"]),
    st.binary(max_size=16),
)


@fuzzed(40, sent=st.lists(FRAMES, max_size=4))
def test_frames(sent):
    for receive in (frames.recv, lambda ours: ask(ours, {}, 1.0)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(b"".join(sent))
            theirs.shutdown(socket.SHUT_WR)
            try:
                while True:
                    receive(ours)
            except (EOFError, OSError, Killed, InfraError):
                continue


@fuzzed(40, data=st.binary(max_size=200), limit=st.integers(1, 60))
def test_outputs(data, limit):
    read, write = os.pipe()
    try:
        os.write(write, data)
        os.close(write)
        output = Output(read, limit)
        output.drain()
        result = output.result(0, False, 0.0)
    finally:
        os.close(read)
    result["output"].encode()
    assert result["output"] == data[:limit].decode("utf-8", "replace")
    assert result["truncated"] == (len(data) > limit)


@fuzzed(40, text=st.text(st.characters(), max_size=40))
def test_inputs(text):
    with open_input(text) as file:
        assert file.read().decode("utf-8", "surrogatepass") == text
