"""The form of the attacks in this folder."""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ["Attack"]


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack. An attack on the machine prints ESCAPED if it succeeds. An attack on a verdict scores if it succeeds.

    Attributes:
        kind: what it attacks.
        name: what it does.
        form: where it runs: a program, a shell of a box, a reply to a coding task, or SQL.
        body: the program, the commands, the program in the reply, or the statement.
        contained: what contains it.
        default: whether a default test runs it; the others are exhaustive.
    """

    kind: str
    name: str
    form: Literal["program", "box", "mbpp", "humaneval", "evalplus", "bigcodebench", "sqlite", "server"]
    body: str
    contained: str
    default: bool = False
