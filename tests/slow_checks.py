"""A task for tests of many workers: MBPP whose verdicts take longer than the machine computes."""

from __future__ import annotations

import hashlib
import time

from cycleqd_jax.tasks.coding import Mbpp

LONGEST_S = 0.8


class SlowMbpp(Mbpp):
    """MBPP whose checks wait for 0 to 0.8 s, which depends on the program; no verdict is kept."""

    def judge(self, record, code):
        time.sleep(LONGEST_S * hashlib.sha256(code.encode()).digest()[0] / 255)
        return super().judge(record, code)[0], False
