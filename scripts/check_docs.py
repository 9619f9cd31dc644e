"""Checks the documentation: ``python scripts/check_docs.py [--site FOLDER]``.

It fails where

- a public name (``__all__`` of the package, of a subpackage, or of a module that a reference page shows) has no docstring;
- a public name of the package or of a subpackage is on no reference page;
- a subpackage has no ``__all__``, or its ``__all__`` lists modules, and one of its modules is on no reference page. Modules
  whose name starts with an underscore are not public, and neither are those of a subpackage that lists its names itself;
- a link in a page, in README.md, CHANGELOG.md or CONTRIBUTING.md leads nowhere;
- a page is missing in the navigation of mkdocs.yml;
- README.md has more than 200 lines.

With ``--site`` it also fails where a public name is missing in a site that ``mkdocs build --site-dir FOLDER`` has built.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

README_LINES = 200
DIRECTIVE = re.compile(r"^::: (cycleqd_jax[\w.]*)", re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def packages(name: str = "cycleqd_jax") -> list[str]:
    """The package, all its subpackages, and the modules directly in it."""
    root = importlib.import_module(name)
    found = [name]
    for info in pkgutil.walk_packages(root.__path__, f"{name}."):
        is_direct = info.name.count(".") == 1
        if (info.ispkg or is_direct) and not info.name.endswith(".inside"):
            found.append(info.name)
    return found


def public_names(module_name: str) -> list[str]:
    """``__all__`` of a module."""
    return [str(name) for name in getattr(importlib.import_module(module_name), "__all__", ())]


def value_of(module_name: str, name: str) -> object:
    """The object of a public name; a module that was not imported yet is imported."""
    module = importlib.import_module(module_name)
    if not hasattr(module, name):
        return importlib.import_module(f"{module_name}.{name}")
    return getattr(module, name)


def documented(module_name: str, name: str) -> bool:
    """Whether a public name has a docstring of its own; names of other packages need none."""
    thing = value_of(module_name, name)
    if name == "__version__":
        return True
    if isinstance(thing, types.ModuleType):
        return bool(thing.__doc__)
    home = getattr(thing, "__module__", None)
    if callable(thing) and isinstance(home, str) and hasattr(thing, "__qualname__") and "[" not in repr(thing):
        if not home.startswith("cycleqd_jax"):
            return True
        text = inspect.unwrap(thing).__doc__ or ""
        return bool(text.strip()) and not text.startswith((f"{name}(", "Create new instance"))
    return _documented_value(module_name, name)


def _documented_value(module_name: str, name: str) -> bool:
    """Whether a text follows the assignment of a constant or an alias, in the module that assigns it."""
    module = importlib.import_module(module_name)
    body = ast.parse(Path(str(module.__file__)).read_text("utf-8")).body
    assigned = False
    for node, after in zip(body, [*body[1:], None], strict=True):
        one = isinstance(node, ast.AnnAssign | ast.AugAssign)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if one else []
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            assigned = True
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                return True
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            if node.level or not str(node.module).startswith("cycleqd_jax"):
                parent = module_name if hasattr(module, "__path__") else module_name.rpartition(".")[0]
                inner = importlib.util.resolve_name("." * node.level + (node.module or ""), parent) if node.level else ""
                return _documented_value(inner, name) if inner else True
            return _documented_value(str(node.module), name)
    home = None if assigned else _home_of_lazy(module, name)
    return home is not None and _documented_value(home, name)


def _home_of_lazy(module: types.ModuleType, name: str) -> str | None:
    """The module that has the same object under the same name, for names that are imported when they are first used."""
    thing = getattr(module, name)
    for other, loaded in list(sys.modules.items()):
        if other.startswith(f"{module.__name__}.") and vars(loaded).get(name) is thing and hasattr(loaded, "__file__"):
            return other
    return None


def docstring_problems() -> Iterator[str]:
    """Public names without docstrings."""
    shown = {match for page in (ROOT / "docs").rglob("*.md") for match in DIRECTIVE.findall(page.read_text("utf-8"))}
    for module_name in sorted({*packages(), *(name for name in shown if _is_module(name))}):
        if not (importlib.import_module(module_name).__doc__ or "").strip():
            yield f"expected a docstring of the module {module_name}, got none; write one"
        for name in public_names(module_name):
            if not documented(module_name, name):
                yield f"expected a docstring of {module_name}.{name}, got none; write one"


def _is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def reference_problems() -> Iterator[str]:
    """Public names and modules that no reference page shows."""
    pages = (ROOT / "docs" / "reference").rglob("*.md")
    shown = {match for page in pages for match in DIRECTIVE.findall(page.read_text("utf-8"))}
    for module_name in packages():
        for name in public_names(module_name):
            if not {module_name, f"{module_name}.{name}"} & shown:
                yield f"expected {module_name}.{name} on a page of docs/reference, got none; add '::: {module_name}' to one"
        for name in public_modules(module_name):
            if name not in shown:
                yield f"expected the module {name} on a page of docs/reference, got none; add '::: {name}' to one"


def public_modules(package_name: str) -> list[str]:
    """The modules that users import by name: those of a subpackage without ``__all__``, or with modules in it."""
    package = importlib.import_module(package_name)
    names = public_names(package_name)
    if package_name == "cycleqd_jax" or not hasattr(package, "__path__"):
        return []
    if hasattr(package, "__all__") and not any(isinstance(value_of(package_name, name), types.ModuleType) for name in names):
        return []
    found = [info.name for info in pkgutil.iter_modules(package.__path__) if not info.name.startswith("_")]
    return [f"{package_name}.{name}" for name in found]


def site_problems(site: Path) -> Iterator[str]:
    """Public names that the built site lacks."""
    pages = (site / "reference").rglob("*.html")
    anchors = {match for page in pages for match in re.findall(r'id="(cycleqd_jax[\w.]*)"', page.read_text("utf-8"))}
    for module_name in packages():
        for name in public_names(module_name):
            if f"{module_name}.{name}" not in anchors and not _foreign(module_name, name):
                yield f"expected {module_name}.{name} in the site {site}, got none; document it where it is defined"


def _foreign(module_name: str, name: str) -> bool:
    """Whether a public name is a module, or comes from another package, so that its own pages describe it."""
    thing = value_of(module_name, name)
    home = getattr(thing, "__module__", None)
    return name == "__version__" or isinstance(thing, types.ModuleType) or not str(home).startswith("cycleqd_jax")


def slug(heading: str) -> str:
    """The anchor of a heading, as Markdown's table of contents and GitHub make it for the headings here."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def link_problems() -> Iterator[str]:
    """Links of pages to files or headings that do not exist."""
    top = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    for page in top + sorted((ROOT / "docs").rglob("*.md")):
        text = FENCE.sub("", page.read_text("utf-8"))
        for link in LINK.findall(text):
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = page if not path else (page.parent / path).resolve()
            where = page.relative_to(ROOT)
            if not target.exists():
                yield f"expected a file at the link {link}, got none in {where}; correct the link"
            elif anchor and target.suffix == ".md":
                headings = {slug(found) for found in HEADING.findall(FENCE.sub("", target.read_text("utf-8")))}
                if anchor not in headings:
                    yield f"expected a heading for the link {link}, got none in {where}; correct the link"


def navigation_problems() -> Iterator[str]:
    """Pages that the navigation lacks."""
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    listed = set(re.findall(r"[\w./-]+\.md", navigation))
    for page in sorted((ROOT / "docs").rglob("*.md")):
        name = page.relative_to(ROOT / "docs").as_posix()
        if name not in listed:
            yield f"expected docs/{name} in the navigation, got none in mkdocs.yml; add it"


def readme_problems() -> Iterator[str]:
    """A README that is too long."""
    lines = len((ROOT / "README.md").read_text("utf-8").splitlines())
    if lines > README_LINES:
        yield f"expected at most {README_LINES} lines, got {lines} in README.md; move some to docs/"


def problems(site: Path | None = None) -> list[str]:
    """Everything that is wrong, one line each."""
    found = [*readme_problems(), *link_problems(), *navigation_problems(), *reference_problems(), *docstring_problems()]
    return found + ([] if site is None else list(site_problems(site)))


def main() -> int:
    """Prints the problems; the exit code is 1 where there are any."""
    parser = argparse.ArgumentParser(description="Check README, pages and docstrings.")
    parser.add_argument("--site", type=Path, help="a site that MkDocs has built: its reference must have every public name")
    found = problems(parser.parse_args().site)
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
