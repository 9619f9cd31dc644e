"""Runs the fenced blocks of a documentation page, as a reader would, with tiny sizes.

A comment before a block says how it is run; readers of the page do not see it::

    <!-- test: tiny; overrides search.generations=2 -->

- ``skip REASON``: the block is not run;
- ``e2e``: it is run by end-to-end tests only;
- ``tiny``: every config that the block names is given the sizes of ``tests/small_run.py``;
- ``overrides KEY=VALUE …``: and these;
- any other word is a preparation that the test gives by that name.

A block with a title is a file. Untitled Python is executed, in one namespace for the page. Lines of bash must be commands of
``cycleqd``, the quickstart, or settings of the environment; placeholders in capitals and other languages are not run.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import cycleqd_jax
from cycleqd_jax.cli import main

from ..small_run import small_config

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"^(?:<!-- test: (?P<comment>[^\n]*?) -->\n)?```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    text: str
    line: int
    title: str | None
    comment: tuple[tuple[str, str], ...]

    def has(self, word: str) -> bool:
        return any(word == found for found, _ in self.comment)


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found = []
    for match in BLOCK.finditer(text):
        parts = [part.strip().partition(" ") for part in (match["comment"] or "").split(";") if part.strip()]
        line = text[: match.start("text")].count("\n") + 1
        comment = tuple((word, rest) for word, _, rest in parts)
        found.append(Block(match["language"], match["text"], line, match["title"], comment))
    return found


class Page:
    """Runs the blocks of a page in the current folder."""

    def __init__(
        self,
        page: Path,
        monkeypatch: pytest.MonkeyPatch,
        *,
        preparations: Mapping[str, Callable[[str], None]] | None = None,
        cache: Path | None = None,
    ) -> None:
        self.page = page
        self.namespace: dict[str, Any] = {"__name__": "__main__"}
        self._monkeypatch = monkeypatch
        self._preparations = dict(preparations or {})
        self._cache = cache
        self._sizes: tuple[bool, list[str]] = (False, [])
        if not Path("configs").exists():
            Path("configs").symlink_to(ROOT / "configs")
        plain = cycleqd_jax.load_config

        def load_config(config: Any, overrides: Any = ()) -> Any:
            return plain(config, [*overrides, *self._overrides(config)])

        monkeypatch.setattr(cycleqd_jax, "load_config", load_config)

    def run(self, languages: tuple[str, ...] = ("python", "bash"), *, e2e: bool = True) -> dict[str, Any]:
        """Runs every block of these languages; returns the namespace of the Python ones."""
        for block in blocks(self.page):
            if block.has("skip") or (block.has("e2e") and not e2e) or (block.title is None and block.language not in languages):
                continue
            self._prepare(block)
            if block.title is not None:
                Path(block.title).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                code = "\n" * (block.line - 1) + block.text
                exec(compile(code, str(self.page), "exec"), self.namespace)
            else:
                for line in block.text.splitlines():
                    self._command(line, block.line)
        return self.namespace

    def _prepare(self, block: Block) -> None:
        tiny, overrides = False, []
        for word, rest in block.comment:
            if word == "tiny":
                tiny = True
            elif word == "overrides":
                overrides += rest.split()
            elif word != "e2e":
                self._preparations[word](rest)
        self._sizes = tiny, overrides

    def _overrides(self, config: Any) -> list[str]:
        """What is changed of a config for the test."""
        tiny, overrides = self._sizes
        tree = config if isinstance(config, Mapping) else yaml.safe_load(Path(config).read_text("utf-8"))
        sizes = tiny_sizes(tree) if tiny else []
        return [*sizes, *overrides, *([f"cache={self._cache}"] if self._cache else [])]

    def _command(self, line: str, number: int) -> None:
        words = shlex.split(line, comments=True)
        if words[:1] == ["export"]:
            words = words[1:]
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            name, _, value = words.pop(0).partition("=")
            if name == "PYTHONPATH":
                self._monkeypatch.syspath_prepend(value)
            elif name != "XLA_FLAGS":  # tests have simulated devices already
                self._monkeypatch.setenv(name, value)
        if words == ["bash", "scripts/quickstart.sh"]:
            words = ["cycleqd", "run", "configs/quickstart.yaml"]
        if not words:
            return
        assert words[0] == "cycleqd", f"{self.page}, line {number}: expected a command of cycleqd, got {line!r}"
        if len(words) > 2 and words[2].endswith(".yaml"):
            words += self._overrides(words[2])
        before = dict(os.environ)
        assert main(words[1:]) == 0, line
        for name in os.environ.keys() - before.keys():
            self._monkeypatch.delenv(name)


def tiny_sizes(tree: Mapping[str, Any]) -> list[str]:
    """Overrides that give a config the sizes of ``small_run``; models that it trains are those of ``small_run``, too."""
    small = small_config(Path())
    sizes: list[str] = []
    for section in ("pretrain", "finetune", "search", "export", "engine", "checkpoint"):
        sizes += [f"{section}.{key}={value}" for key, value in small[section].items()]
    if tree.get("model", {}).get("base") is None:
        sizes += [f"model.tiny={yaml.safe_dump(small['model']['tiny'], default_flow_style=True, width=1000).strip()}"]
    if "baselines" in tree:
        sizes += [f"baselines={yaml.safe_dump(small['baselines'], default_flow_style=True).strip()}"]
    task = small["tasks"][0]
    for name, given in ((item["name"], item) for item in tree["tasks"]):
        for key in ("train_size", "validation_size", "test_size", "max_new_tokens"):
            size = given.get(key, task[key])
            if size is not None:  # null takes all problems of the page's own file
                sizes.append(f"tasks.{name}.{key}={min(task[key], size)}")
        if given.get("train") is None:
            sizes.append(f"tasks.{name}.finetune_size={task['finetune_size']}")
    return sizes
