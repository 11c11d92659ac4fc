"""The house rules that a reviewer would otherwise have to remember."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = (
    "errors", "text", "records", "files", "resources", "system", "storage", "spectra", "architecture", "report",
    "checkpoint", "function", "analysis", "live", "decay", "rates", "trajectories", "dynamics", "comparison", "reference",
    "auditing", "kinship", "verification", "optim", "train", "views", "plot",
)  # fmt: skip
"""From the ground up: a room imports from those before it."""
LIGHT = {
    "specdiag.errors", "specdiag.records", "specdiag.text", "specdiag.text.counts", "specdiag.text.names", "specdiag.text.printable",
    "specdiag.text.words", "specdiag.system", "specdiag.system.distributions", "specdiag.views.cells", "specdiag.views.columns",
}  # fmt: skip
"""Modules that the command line may load before it knows the command."""
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


ALL = SOURCES + sorted((ROOT / "cli").glob("*.py"))


def texts(path):
    """Docstrings of a file with their lines, those under attributes too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def public_functions(body):
    """Functions of a module and methods of its classes that have a public name."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield from public_functions(node.body) if isinstance(node, ast.ClassDef) else [node]


def test_docstrings_begin_with_a_verb_or_a_noun():
    odd = re.compile(r"\s*(What|Whether|One|Of)\b")
    found = [f"{p}:{line}" for p in ALL for line, text in texts(p) if odd.match(text)]
    assert not found


def test_no_public_signature_has_any():
    found = []
    for path in ALL:
        for function in public_functions(ast.parse(path.read_text()).body):
            names = [n.id for n in ast.walk(function.args) if isinstance(n, ast.Name)]
            names += [n.id for n in ast.walk(function.returns or ast.Pass()) if isinstance(n, ast.Name)]
            found += [f"{path}:{function.lineno} {function.name}"] if "Any" in names else []
    assert not found


def test_the_library_speaks_of_arguments():
    """Options stand only in whole commands, in quotes: 'specdiag trajectory --revisions a,b'."""
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                rest = re.sub(r"'specdiag [^']*'|`[^`]*`", "", node.value)
                found += [f"{path}:{node.lineno} {flag}" for flag in re.findall(r"(?:^|\s)(--[a-z][\w-]*)", rest)]
    assert not found


def test_percents_are_written_in_one_way():
    unspaced = re.compile(r"""\d%(?!\w)|:[^{}'"]*%\}""")
    paths = (*SOURCES, *(ROOT / "cli").glob("*.py"))
    lines = [(path.name, line.strip()) for path in paths for line in path.read_text().splitlines()]
    assert [found for found in lines if unspaced.search(found[1])] == []
