"""The house rules that a reviewer would otherwise have to remember."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = {
    "errors": 0, "address_space": 0, "checks": 0, "files": 0, "interrupts": 0, "lock": 0, "markdown": 0, "printable": 0,
    "records": 0, "resources": 0, "architecture": 1, "plausible": 1, "saved_spectra": 1,
    "checkpoint": 2, "cost": 2, "report": 2, "spectra": 2,
    "analysis": 3, "cache": 3, "measuring": 3, "metric_log": 3, "options": 3, "ranks": 3, "resuming": 3, "summary": 3, "workers": 3,
    "decay": 4, "auditing": 5, "comparison": 5, "dynamics": 5, "optim": 5, "recommendation": 5, "trajectories": 5,
    "train": 6, "views": 7, "plot": 7,
}  # fmt: skip
LIGHT = {"specdiag.errors", "specdiag.records", "specdiag.printable", "address_space", "interrupts"}
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
            assert LEVELS[room(module)] <= LEVELS[own], f"{path} imports {module}, a higher room"


def test_every_room_has_a_level():
    rooms = {p.relative_to(ROOT / "specdiag").parts[0].removesuffix(".py") for p in SOURCES}
    assert rooms - {"__init__", "__main__"} == set(LEVELS)


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
