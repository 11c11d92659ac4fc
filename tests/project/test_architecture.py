"""The house rules that a reviewer would otherwise have to remember."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = (
    "errors", "text", "records", "checks", "files", "resources", "system", "storage", "spectra", "architecture", "report",
    "checkpoint", "analysis", "live", "decay", "trajectories", "dynamics", "comparison", "auditing", "optim", "train", "views",
    "plot",
)  # fmt: skip
"""From the ground up: a room imports from those before it."""
LIGHT = {
    "specdiag.errors", "specdiag.records", "specdiag.text", "specdiag.text.names", "specdiag.text.printable",
    "specdiag.system", "specdiag.views.cells", "specdiag.views.columns",
}  # fmt: skip
"""What the command line may load before it knows the command."""
SOURCES = sorted((ROOT / "specdiag").rglob("*.py"))


def imported(path):
    """Absolute names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def room(module):
    return module.split(".")[1] if "." in module else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    own = path.relative_to(ROOT / "specdiag").parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    for module in imported(path):
        assert not re.match(r"(typer|rich|specdiag_cli|cli)\b", module), f"{path} imports {module}"
        if module.startswith("specdiag."):
            assert ROOMS.index(room(module)) <= ROOMS.index(own), f"{path} imports {module}, a higher room"


def test_every_room_has_its_place():
    rooms = {p.relative_to(ROOT / "specdiag").parts[0].removesuffix(".py") for p in SOURCES}
    assert rooms - {"__init__", "__main__"} == set(ROOMS)


def imported_at_once(path):
    """Modules that are loaded with a file: not inside functions, and not for types alone."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("specdiag"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module


def test_no_modules_import_each_other():
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in SOURCES}
    arrows = {name: set(imported_at_once(path)) & set(names) - {name, "specdiag"} for name, path in names.items()}
    while free := {name for name, targets in arrows.items() if not targets & set(arrows)}:
        arrows = {name: targets for name, targets in arrows.items() if name not in free}
    assert not arrows, f"a circle goes through {', '.join(sorted(arrows))}"


def test_packages_and_data_are_listed():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(p.parent.relative_to(ROOT).parts) for p in SOURCES}
    assert set(setup["packages"]) == folders | {"specdiag_cli"}
    data = {p for p in (ROOT / "specdiag").rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    listed = {p for pattern in setup["package-data"]["specdiag"] for p in (ROOT / "specdiag").glob(pattern)}
    assert listed == data


def test_public_names_exist():
    import specdiag

    for name in specdiag.__all__:
        assert getattr(specdiag, name) is not None
    assert sorted(specdiag.__all__) == specdiag.__all__
    assert set(specdiag._HOMES) == set(specdiag.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        specdiag.nonsense  # noqa: B018


def test_the_cli_needs_no_library_internals_at_import():
    for path in (ROOT / "cli").glob("*.py"):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.startswith("specdiag"):
                assert node.module in LIGHT or {n.name for n in node.names} <= LIGHT, f"{path}: {node.module}"
