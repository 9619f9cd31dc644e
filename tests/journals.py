"""Journals as versions without checksums wrote them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def lines_without_checksums(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal without their checksums, so that a test can change them."""
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [{name: value for name, value in line.items() if name != "checksum"} for line in lines]
