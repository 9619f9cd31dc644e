"""The import arrows between the rooms of the house, and what each room may pull in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cycleqd_jax

PACKAGE = Path(cycleqd_jax.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
EVERYTHING = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir()} - {"__init__", "__pycache__"}

# room ← what it may import, besides itself
ARROWS = {
    "types": set(),
    "files": {"types"},
    "config": {"types"},
    "sharding": {"types"},
    "operators": {"types"},
    "genome": {"types", "operators", "sharding"},
    "algorithms": {"types", "operators"},
    "models": {"types", "sharding"},
    "training": {"types", "models"},
    "engine": {"types", "models"},
    "sandbox": set(),
    "tasks": {"types", "files", "sandbox"},
    "evaluation": {"types"},
    "search": {"types", "files", "evaluation"},
    "plan": {"types", "sharding", "operators", "genome", "models", "engine"},
    "runs": EVERYTHING - {"cli", "plan"},
    "report": {"types", "files"},
    "cli": EVERYTHING,
}
HEAVY = ("transformers", "qdax", "orbax", "matplotlib", "yaml", "torch")


def room_of(path: Path) -> str:
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


def rooms_imported(names: set[str]) -> set[str]:
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
    assert rooms_imported(imported(source, ("cycleqd_jax", "search"))) == expected


def test_every_room_has_its_line_in_the_table():
    assert {room_of(path) for path in MODULES} - {"__init__"} <= set(ARROWS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_import_arrows(path):
    room = room_of(path)
    allowed = set() if room == "__init__" else ARROWS[room] | {room}
    assert rooms_imported(imports_of(path)) <= allowed


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
    others = tuple(f"cycleqd_jax.{room}" for room in sorted(EVERYTHING - {"operators", "types"}))
    assert loaded_by("import cycleqd_jax.operators", (*HEAVY, *others)) == []


def test_importing_the_package_imports_no_room():
    assert loaded_by("import cycleqd_jax", ("jax", *HEAVY)) == []


def test_the_sandbox_does_not_wait_for_jax():
    assert loaded_by("import cycleqd_jax.sandbox", ("jax", "numpy", *HEAVY)) == []
