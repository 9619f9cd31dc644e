"""A task for tests of many workers: MBPP whose verdicts take longer than the machine computes."""

from __future__ import annotations

import hashlib
import time

from cycleqd_jax.tasks.coding import Mbpp
from cycleqd_jax.tasks.coding.base import CodingEpisode

LONGEST_S = 2.0


class SlowEpisode(CodingEpisode):
    """A problem whose verdict takes up to two seconds more, which depends on the reply. No verdict is kept."""

    def step(self, reply):
        time.sleep(LONGEST_S * hashlib.sha256(reply.encode()).digest()[0] / 255)
        score = super().step(reply)
        self.repeatable = False
        return score


class SlowMbpp(Mbpp):
    """MBPP with slow verdicts."""

    def environment(self, record):
        return SlowEpisode(self, record)
