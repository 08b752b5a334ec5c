"""Imports point one way: cli, commands → callbacks, tasks → models, rendering, … → layers → torch."""

import ast
import importlib
import sys
from pathlib import Path

import pytest

import sinelr_lightning

ROOT = Path(sinelr_lightning.__file__).parent
MODULES = [p.relative_to(ROOT) for p in sorted(ROOT.rglob("*.py"))]
OURS = ROOT.name
EVERYBODY = {"errors", "files", "progress"}  # may be imported by all but the layers
MIDDLE = {"models", "rendering", "geometry", "datamodules", "adapters", "analysis", "layers", *EVERYBODY}
TOP = {"cli", "commands", "comparison", "runs", "slurm", "callbacks", "tasks", *MIDDLE}

# What each part may import of the package, besides itself. A name stands for all below it.
MAY_IMPORT = {
    "layers": set(),
    "models": {"layers.factory"},
    "rendering": EVERYBODY,
    "geometry": EVERYBODY,
    "datamodules": {"rendering", "geometry", *EVERYBODY},
    "adapters": {"layers", *EVERYBODY},
    "analysis": {"layers", *EVERYBODY},
    "tasks": MIDDLE,
    "callbacks": {"tasks", "runs", *MIDDLE},
    "runs": {"tasks", *MIDDLE},
    "slurm": EVERYBODY,
    "comparison": EVERYBODY,
    "commands": TOP,
    "cli": TOP,
    "__main__": {"cli"},
    "errors": set(),
    "files": {"errors"},
    "progress": set(),
    "when_imported": set(),
}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, also inside functions and under TYPE_CHECKING."""
    package, found = [OURS, *path.parent.parts], set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == OURS else {module}
    return found


@pytest.mark.parametrize("path", [p for p in MODULES if p.as_posix() != "__init__.py"], ids=str)
def test_imports_point_one_way(path: Path):
    part = path.parts[0].removesuffix(".py")
    allowed = {part, *MAY_IMPORT[part]}
    for name in imports(path):
        top, _, ours = name.partition(".")
        if top == OURS and ours not in ("", "__version__"):
            assert any(f"{ours}.".startswith(f"{a}.") for a in allowed), f"{path} may not import {name}"
        elif part == "layers":
            assert top == "torch" or top in sys.stdlib_module_names, f"{path} may not import {name}"
        elif part == "rendering":
            assert top in {"torch", "numpy", "PIL", "av"} or top in sys.stdlib_module_names, f"{path}: {name}"
        elif part == "geometry":
            assert top not in {"torch", "lightning"}, f"{path} may not import {name}"
            assert not name.startswith(("igl.copyleft", "igl.triangle")), f"{name} is of another licence"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_name_in_all_exists(path: Path):
    name = ".".join([OURS, *path.with_suffix("").parts]).removesuffix(".__init__")
    if path.parts[0] == "adapters":
        pytest.importorskip("peft")
    module = importlib.import_module(name)
    assert all(hasattr(module, public) for public in getattr(module, "__all__", ()))
