"""What the tests of the hub share: files of a repository, and what a log of requests shows."""

from __future__ import annotations

import json

FIRST = 1 << 15  # bytes of a file that are fetched for its header
INDEX = "model.safetensors.index.json"
JUNK = {
    "README.md": b"# A model\n",
    "original/consolidated.00.pth": bytes(10_000),
    "original/params.json": b"{}",
    "consolidated.safetensors": bytes(10_000),
    "pytorch_model.bin": bytes(10_000),
    "params.json": b"{}",
    "onnx/model.safetensors": bytes(100),
    ".gitattributes": b"",
}


def large(log):
    """Weights that were sent: bytes by file."""
    sent = {}
    for request in log:
        if request.file and request.sent and request.file.endswith((".safetensors", ".bin", ".pth")):
            sent[request.file] = sent.get(request.file, 0) + request.sent
    return sent


def touched(log):
    """Files that were asked for."""
    return {request.file for request in log if request.file is not None}


def rewrite_index(files, change):
    index = json.loads(files[INDEX])
    change(index["weight_map"])
    files[INDEX] = json.dumps(index).encode()
