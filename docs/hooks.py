"""What the documentation site adds to MkDocs: the table of configuration keys, and docstrings without Sphinx's roles.

The package is read, not imported, so that the site builds without JAX.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).parents[1]
MARKER = "<!-- configuration keys -->"
ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([^`]+)`")


class PublicNames(griffe.Extension):
    """Reads docstrings and public names as the package means them."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Lets a public function hide the module of the same name, as it does when the package is imported."""
        del kwargs
        rooms = [pkg]
        for room in rooms:
            rooms += [member for member in room.members.values() if not member.is_alias and isinstance(member, griffe.Module)]
        public = [(room, str(name)) for room in rooms for name in room.exports or () if str(name) in room.members]
        for room, name in public:
            member = room.members[name]
            if member.is_alias:
                with contextlib.suppress(griffe.AliasResolutionError):  # a name of another package
                    _ = member.final_target  # found now, before a module on its path is hidden
        for room, name in public:
            module = room.members[name]
            if not module.is_alias and module.is_module and name in module.members:
                room.members[name] = griffe.Alias(name, module.members[name], parent=room)

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Replaces Sphinx's roles, such as ``:func:`~a.b.c```, by code."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)


def plain(text: str) -> str:
    """``text`` with the last name of every role's target, as code."""

    def name(match: re.Match[str]) -> str:
        full = match[0].split("`")[1]
        return f"`{full.removeprefix('~').rsplit('.', 1)[-1] if full.startswith('~') else full}`"

    return ROLE.sub(name, text)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Puts the tables in the place of the marker; MkDocs calls it for every page."""
    del kwargs
    return markdown.replace(MARKER, config_tables()) if MARKER in markdown else markdown


def config_tables() -> str:
    """A table of keys for the whole config and for each of its sections, from the dataclasses and their docstrings."""
    package = griffe.load("cycleqd_jax.config", search_paths=[ROOT], docstring_parser=griffe.Parser.google)
    lines: list[str] = []
    for prefix, cls in _sections(package, "", package["RunConfig"]):
        heading = f"`{prefix.rstrip('.')}`" if prefix else "The whole config"
        lines += [f"## {heading}", "", plain(cls.docstring.value.split("\n\n")[0]) if cls.docstring else "", ""]
        lines += ["| key | type | default | |", "|---|---|---|---|"]
        texts = _texts(cls)
        for field in _fields(cls):
            if _section(package, field) is not None:
                kind, default = "section", ""
            else:
                kind = _kind(str(field.annotation))
                default = "required" if field.value is None else _default(str(field.value))
            lines.append(f"| `{prefix}{field.name}` | {kind} | {default} | {_cell(texts.get(field.name, ''))} |")
        lines.append("")
    return "\n".join(lines)


def _sections(package: Any, prefix: str, cls: Any) -> Iterator[tuple[str, Any]]:
    yield prefix, cls
    for field in _fields(cls):
        inner = _section(package, field)
        if inner is not None:
            yield from _sections(package, f"{prefix}{field.name}{'[].' if 'tuple' in str(field.annotation) else '.'}", inner)


def _section(package: Any, field: Any) -> Any:
    """The dataclass of a field that is a section of its own, else None."""
    found = re.search(r"\b(\w+Config)\b", str(field.annotation))
    return package[found[1]] if found else None


def _fields(cls: Any) -> list[Any]:
    return [member for member in cls.members.values() if member.is_attribute and "property" not in member.labels]


def _texts(cls: Any) -> dict[str, str]:
    """What the docstring says of each attribute."""
    sections = cls.docstring.parse("google", warnings=False) if cls.docstring else []
    found = [item for section in sections if section.kind.value == "attributes" for item in section.value]
    return {item.name: item.description for item in found}


def _kind(annotation: str) -> str:
    literal = re.search(r"Literal\[(.*?)\]", annotation)
    if literal:
        words = ", ".join(f"`{word.strip().strip(chr(34)).strip(chr(39))}`" for word in literal[1].split(","))
        annotation = annotation.replace(literal[0], words)
        if annotation.startswith("tuple"):
            return f"list of {words}"
    annotation = annotation.replace("None", "null").replace(" | null", " or null")
    return annotation if literal else f"`{annotation}`"


def _default(value: str) -> str:
    factory = re.search(r"default_factory=(\w+)", value)
    if factory:
        value = {"dict": "{}", "list": "[]"}.get(factory[1], value)
    value = {"None": "null", "True": "true", "False": "false", "()": "[]"}.get(value, value)
    return f"`{value.strip(chr(34)).strip(chr(39)) or value}`"


def _cell(text: str) -> str:
    return " ".join(plain(text).split()).replace("|", "\\|")
