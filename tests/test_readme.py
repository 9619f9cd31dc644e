"""The README's Python is run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_examples(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 2
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)
    experts = namespace["evaluate"](namespace["genomes"]).mean(1)
    merged = namespace["scores"](namespace["merged"]).mean()
    assert float(merged) > 2 * float(experts.max())
    assert "CycleQD" in capsys.readouterr().out
