"""The import arrows between subpackages, and the libraries that importing one may load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cycleqd_jax

PACKAGE = Path(cycleqd_jax.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
PAGE = Path(__file__).parents[1] / "docs" / "ARCHITECTURE.md"
EVERYTHING = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()} - {"__init__", "__pycache__"}

# subpackage ← what it imports besides itself: exactly these arrows
ARROWS = {
    "version": set(),
    "types": set(),
    "machine": set(),
    "interrupts": set(),
    "individual": {"types", "schema"},
    "tool_calls": {"types"},
    "statistics": {"types"},
    "files": {"types"},
    "disk_errors": set(),
    "yaml_files": set(),
    "schema": {"types"},
    "compilation": {"files", "machine"},
    "sharding": {"types"},
    "config": {"types", "schema", "yaml_files"},
    "operators": {"types"},
    "processes": {"types"},
    "genome": {"types", "operators", "sharding"},
    "algorithms": {"types", "operators"},
    "models": {"types", "compilation", "tool_calls", "files", "sharding", "version"},
    "merging": {"types", "files", "operators", "models", "version", "yaml_files"},
    "training": {"types", "config", "operators", "genome", "models"},
    "engine": {"types", "models"},
    "sandbox": {"machine"},
    "tasks": {"types", "tool_calls", "files", "sandbox"},
    "evaluation": {"types", "disk_errors", "interrupts", "sandbox", "tool_calls"},
    "search": {"types", "individual", "disk_errors", "files", "evaluation"},
    "plan": {"types", "machine", "config", "sharding", "operators", "genome", "models", "engine"},
    "report": {"types", "individual", "files", "schema", "statistics", "yaml_files"},
    "runs": EVERYTHING - {"cli", "lm_eval", "merging", "runs", "serve", "statistics", "tool_calls", "yaml_files", "py"},
    "lm_eval": {"types", "disk_errors", "models", "engine", "runs"},
    "serve": {"types", "compilation", "config", "models", "engine", "report", "runs", "search"},
    "cli": {
        "types", "disk_errors", "files", "machine", "compilation", "config", "models", "engine", "sandbox", "tasks", "merging",
        "plan", "processes", "report", "runs", "serve", "version"
    },
    "__init__": {
        "types", "config", "operators", "genome", "algorithms", "engine", "sandbox", "tasks", "report", "runs", "version"
    },
}  # fmt: skip
HEAVY = ("transformers", "qdax", "orbax", "matplotlib", "yaml", "torch", "starlette", "uvicorn")


def subpackage_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported(source: str, package: tuple[str, ...]) -> set[str]:
    """Dotted names of all modules a source imports, wherever in it; ``from a import b`` counts as both ``a`` and ``a.b``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = list(package[: len(package) - node.level + 1]) if node.level else []
            module = ".".join([*parent, *([node.module] if node.module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(str(node.args[0].value))
    return found


def imports_of(path: Path) -> set[str]:
    package = ("cycleqd_jax", *path.relative_to(PACKAGE).parent.parts)
    return imported(path.read_text("utf-8"), package)


def subpackages_imported(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("cycleqd_jax.")} & EVERYTHING


def test_the_walk_sees_every_way_of_importing():
    source = (
        "import cycleqd_jax.algorithms.cycleqd as c\n"
        "from cycleqd_jax import engine\n"
        "from ..models.llama import forward\n"
        "from .. import tasks\n"
        "def f():\n    from cycleqd_jax.report import page\n    import importlib\n"
        "    importlib.import_module('cycleqd_jax.sandbox')\n"
    )
    expected = {"algorithms", "engine", "models", "tasks", "report", "sandbox"}
    assert subpackages_imported(imported(source, ("cycleqd_jax", "search"))) == expected


def test_every_subpackage_has_its_line_in_the_table():
    assert {subpackage_of(path) for path in MODULES} - {"__init__"} <= set(ARROWS)


def table_of(page: str) -> dict[str, str]:
    """The cells of a page's table of subpackages: name → imports. The name is that of a folder or a module of the package."""
    table = page.split("| subpackage or module |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `([\w/.]+)` \| .* \|(.*)\|$", table, re.MULTILINE)
    assert len(rows) == table.count("\n") - 1, "a row without a name or an import cell"
    return {name.removesuffix("/").removesuffix(".py"): cell.strip() for name, cell in rows}


def test_the_page_has_the_same_table():
    cells = table_of(PAGE.read_text("utf-8"))
    folders = {path.parent.relative_to(PACKAGE).as_posix() for path in MODULES} - {"."}
    assert folders <= set(cells)
    found = {}
    for name in set(cells) & set(ARROWS):
        listed = set(cells[name].removeprefix("all except ").split(", ")) - {"–"}
        others = EVERYTHING - {name, "types", "py"} - listed
        found[name] = others if cells[name].startswith("all except ") else listed
    assert found == {name: names - {"types"} for name, names in ARROWS.items()}


def test_import_arrows():
    found: dict[str, set[str]] = {}
    for path in MODULES:
        found.setdefault(subpackage_of(path), set()).update(subpackages_imported(imports_of(path)))
    assert {name: names - {name} for name, names in found.items()} == ARROWS


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_module_imports_itself_through_others():
    """No circle among modules, imports inside functions and for type checkers included."""
    modules = {module_of(path): path for path in MODULES}
    graph = {name: {other for other in imports_of(path) if other in modules} - {name} for name, path in modules.items()}
    for name, path in modules.items():
        if path.name == "__init__.py":  # importing a submodule runs its package, which is no arrow of the code
            for other in graph:
                if other.startswith(f"{name}."):
                    graph[other].discard(name)
    state: dict[str, bool] = {}  # False: being visited

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in state:
            assert state[name], f"circle: {' → '.join([*path[path.index(name) :], name])}"
            return
        state[name] = False
        for other in sorted(graph[name]):
            visit(other, (*path, name))
        state[name] = True

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_imports_torch(path):
    assert "torch" not in {name.split(".")[0] for name in imports_of(path)}


@pytest.mark.parametrize("path", sorted((PACKAGE / "sandbox").rglob("*.py")), ids=lambda path: path.name)
def test_the_sandbox_needs_the_standard_library_only(path):
    outside = {name.split(".")[0] for name in imports_of(path)} - set(sys.stdlib_module_names) - {"cycleqd_jax"}
    assert not outside


def loaded_by(statement: str, names: tuple[str, ...]) -> list[str]:
    """Which of ``names`` a fresh interpreter holds after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def test_operators_are_importable_alone():
    others = tuple(f"cycleqd_jax.{name}" for name in sorted(EVERYTHING - {"operators", "types", "version"}))
    assert loaded_by("import cycleqd_jax.operators", (*HEAVY, *others)) == []


def test_importing_the_package_imports_no_subpackage():
    assert loaded_by("import cycleqd_jax", ("jax", *HEAVY)) == []


def test_the_sandbox_does_not_wait_for_jax():
    assert loaded_by("import cycleqd_jax.sandbox", ("jax", "numpy", *HEAVY)) == []
