"""Imports point down: no module imports one of a higher layer, nor itself in a circle."""

import ast
import graphlib
from pathlib import Path

import genjax

ROOT = Path(genjax.__file__).parent
LAYERS = [
    {"bars", "checks", "compilation", "config", "durations", "files", "pictures", "provenance"}
    | {"starting"}
    | {"train_state"},
    {"parallel", "nn"},
    {"adapters"},
    {"method"},
    {"networks", "data"},
    {"interop", "modalities"},
    {"sampling"},
    {"methods"},
    {"training"},
    {"evals", "planning"},
    {"modes", "flags"},
    {"library"},
    {"main"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports():
    """Module -> the modules of the package that it imports, anywhere in it."""
    files = {path.relative_to(ROOT.parent).with_suffix("").as_posix(): path for path in _files()}
    modules = {n.replace("/", ".").removesuffix(".__init__"): path for n, path in files.items()}
    found = {}
    for module, path in modules.items():
        nodes = list(ast.walk(ast.parse(path.read_text())))
        lines = [
            (n.module, a.name) for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names
        ]
        lines += [(a.name, "") for n in nodes if isinstance(n, ast.Import) for a in n.names]
        named = {f"{m}.{n}" if f"{m}.{n}" in modules else m for m, n in lines}
        found[module] = {name for name in named if name in modules and name != "genjax"}
    return found


def _files():
    return (path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def test_imports_point_down_and_in_no_circle():
    found = imports()
    assert len(found) > 100
    up = [
        f"{module} -> {target}"
        for module, targets in found.items()
        for target in targets
        if LEVEL[target.split(".")[1]] > LEVEL[module.split(".")[1]]
    ]
    assert not up
    list(graphlib.TopologicalSorter(found).static_order())  # CycleError names the circle
