"""What the documentation site adds to MkDocs: tables of configuration keys and of commands, and docstrings as Markdown."""

from __future__ import annotations

import argparse
import contextlib
import re
from typing import Any

import griffe
import yaml

from cycleqd_jax.cli.parser import make_parser
from cycleqd_jax.config import describe

ROLE = re.compile(r":(?:class|func|meth|mod|data|attr|exc):`~?([^`]+)`")


class PublicNames(griffe.Extension):
    """Reads docstrings and public names as the package means them."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Lets a public function hide the module of the same name, as it does when the package is imported."""
        del kwargs
        modules = [pkg]
        for parent in modules:
            modules += [
                member for member in parent.members.values() if not member.is_alias and isinstance(member, griffe.Module)
            ]
        public = [(parent, str(name)) for parent in modules for name in parent.exports or () if str(name) in parent.members]
        for parent, name in public:
            member = parent.members[name]
            if member.is_alias:
                with contextlib.suppress(griffe.AliasResolutionError):  # a name of another package
                    _ = member.final_target  # found now, before a module on its path is hidden
        for parent, name in public:
            module = parent.members[name]
            hidden = parent.imports.get(name) == f"{module.path}.{name}"
            if not module.is_alias and module.is_module and hidden and name in module.members:
                for member in module.members.values():  # griffe does not come to what is hidden
                    if not member.is_alias:
                        self.on_object(obj=member)
                parent.members[name] = griffe.Alias(name, module.members[name], parent=parent)

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Replaces Sphinx's roles, such as ``:func:`~a.b.c```, by code, and puts doctests into code blocks."""
        del kwargs
        if obj.docstring is not None:
            obj.docstring.value = fenced(plain(obj.docstring.value))


def plain(text: str) -> str:
    """``text`` with the last name of every role's target, as code."""

    def name(match: re.Match[str]) -> str:
        full = match[0].split("`")[1]
        return f"`{full.removeprefix('~').rsplit('.', 1)[-1] if full.startswith('~') else full}`"

    return ROLE.sub(name, text)


def fenced(text: str) -> str:
    """``text`` with a code block around every doctest, which ends at an empty line. Markdown would make quotations of them."""
    lines: list[str] = []
    inside = False
    for line in [*text.split("\n"), ""]:
        if not inside and line.lstrip().startswith(">>> "):
            indent, inside = line[: len(line) - len(line.lstrip())], True
            lines.append(f"{indent}```pycon")
        elif inside and not line.strip():
            inside = False
            lines.append(f"{indent}```")
        lines.append(line)
    return "\n".join(lines[:-1])


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Puts tables in the place of markers; MkDocs calls it for every page."""
    del kwargs
    for marker, tables in (("<!-- configuration keys -->", config_tables), ("<!-- options of commands -->", command_tables)):
        if marker in markdown:
            markdown = markdown.replace(marker, tables())
    return markdown


def config_tables() -> str:
    """A table of keys for the whole config and for each of its sections, from :func:`cycleqd_jax.config.describe`."""
    lines: list[str] = []
    keys = describe()
    sections = [None, *(doc for doc in keys if any(k.key.startswith(f"{doc.key}.") for k in keys))]
    for section in sections:
        prefix = "" if section is None else f"{section.key}."
        inside = [doc for doc in keys if doc.key.startswith(prefix)]
        if inside and inside[0].key.startswith(f"{prefix}*."):
            prefix += "*."
        rows = [doc for doc in inside if "." not in doc.key.removeprefix(prefix)]
        lines += ["## The whole config" if section is None else f"## `{section.key}`", ""]
        lines += ["" if section is None else _cell(section.text), "", "| key | type | default | |", "|---|---|---|---|"]
        for doc in rows:
            plain_section = doc in sections and "null" not in doc.type
            default = "required" if doc.required else "" if plain_section else f"`{_yaml(doc.default)}`"
            limits = f" ({doc.range})" if doc.range else ""
            lines.append(f"| `{doc.key}` | {doc.type}{limits} | {default} | {_cell(doc.text)} |")
        lines.append("")
    return "\n".join(lines)


def command_tables() -> str:
    """What every command does, its arguments and its options, from the parser of the command line."""
    lines: list[str] = []
    subparsers = next(action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in subparsers.choices.items():
        lines += [f"### `cycleqd {name}`", "", *filter(None, (command.description, command.epilog)), ""]
        rows = [action for action in command._actions if action.dest != "help"]
        if rows:
            lines += ["| argument | meaning |", "|---|---|"]
            lines += [f"| {_argument(action)} | {_cell(action.help or '')} |" for action in rows]
            lines.append("")
    return "\n".join(lines)


def _argument(action: argparse.Action) -> str:
    """The names of an argument and of its values, as code."""
    choices = f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest
    metavar = action.metavar or choices
    values = metavar if isinstance(metavar, str) else " ".join(metavar)
    if action.nargs in ("+", "*"):
        values += " …"
    if action.nargs == 0:
        values = ""
    names = [f"{option} {values}".strip() for option in action.option_strings] or [values]
    return ", ".join(f"`{name}`" for name in names).replace("|", "\\|")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _cell(text: str) -> str:
    return " ".join(plain(text).split()).replace("|", "\\|")
