"""`specdiag explain` knows every column of every table, and every key of every file."""

import ast
from pathlib import Path

import pytest
from command import execute
from specdiag_cli import function_tables

from specdiag.auditing import token_wording
from specdiag.auditing.records import AuditReport
from specdiag.comparison.records import Comparison
from specdiag.decay.plan import DecayPlan
from specdiag.dynamics.norm_log import Watched
from specdiag.dynamics.records import Point, Simulation
from specdiag.dynamics.run_check import RunCheck
from specdiag.kinship.records import Lineage, Mix, Relation
from specdiag.rates.plan import RatePlan
from specdiag.reference.ranges import Range, ReferenceRanges
from specdiag.report import COLUMNS, _ReportFile
from specdiag.trajectories.ledger import Ledger
from specdiag.trajectories.records import RUN_METRICS, Trajectory
from specdiag.verification import wording
from specdiag.verification.records import TensorCheck, Verification
from specdiag.views import reading
from specdiag.views.columns import basis_head
from specdiag.views.terms import ANY, names, terms

ROOT = Path(__file__).parents[2]
FILES = (
    _ReportFile, AuditReport, Comparison, DecayPlan, Ledger, Lineage, RatePlan, ReferenceRanges, RunCheck, Simulation,
    Trajectory, Verification, Watched,
)  # fmt: skip
ROWS = (Range, TensorCheck, Relation, Mix)
COMMANDS = {
    "analyze", "audit", "compare", "lineage", "recommend", "simulate", "trajectory", "verify", "reference", "train",
}  # fmt: skip
MADE = {
    "cli/audit_output.py": {"head"},
    "cli/compare_output.py": {"head"},
    "cli/function_tables.py": {"f'{role} {head}'"},
    "cli/lineage_output.py": {"other"},
    "cli/recommend_output.py": {"basis_head(plan)"},
    "cli/recommend_rates.py": {"'square_alpha' if plan.basis == 'square' else 'alpha'"},
    "cli/simulate_output.py": {"name"},
    "cli/tables.py": {"f'{low}-{high}' if high > low else f'{low}'", "name"},
    "cli/train_ranking_output.py": {"c", "head", "table.measure"},
    "cli/trajectory_output.py": {"head", "words(metric)"},
    "cli/verify_output.py": {"head"},
    "specdiag/views/columns.py": {"head", "basis_head(plan)"},
}
"""Heads that are no constants: heads of lists below, layers, and names that the reader gave."""


def heads(path):
    """The first arguments of calls that make columns: constants, and the source text of others."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("Column", "field", "gain"):
                head = node.args[0]
                yield (head.value, True) if isinstance(head, ast.Constant) else (ast.unparse(head), False)


def is_explained(name):
    return reading.find(name) is not None or bool(terms(name))


def sources():
    return [*sorted((ROOT / "cli").glob("*.py")), ROOT / "specdiag" / "views" / "columns.py"]


def test_every_head_of_a_table():
    found = {head for path in sources() for head, constant in heads(path) if constant and head}
    assert len(found) > 90
    assert sorted(head for head in found if not is_explained(head)) == []


def test_heads_that_are_made_are_known():
    found = {str(p.relative_to(ROOT)): {h for h, constant in heads(p) if not constant} for p in sources()}
    assert {path: made for path, made in found.items() if made} == MADE


def test_heads_of_lists():
    products = [f"{role} {metric[0]}" for role in function_tables._ROLES for metric in function_tables._METRICS]
    audit = ("module", "severity", "check", "value", "expected")
    compared = ("tensor", "role", "shape", "before", "after", "reason")
    bases = ("square_alpha", "alpha", "frobenius_norm", "spectral_norm")
    known = (*products, *audit, *compared, *bases, *wording.HEADS, *token_wording.HEADS, *RUN_METRICS)
    assert [head for head in known if not is_explained(head)] == []
    assert basis_head.__doc__


@pytest.mark.parametrize("record", FILES, ids=lambda record: record.__name__)
def test_every_key_of_a_file(record):
    assert [key for key in record.__struct_fields__ if not is_explained(key)] == []


def test_every_column_of_rows():
    rows = [name for record in (*ROWS, Point) for name in record.__struct_fields__]
    exported = [
        record._columns(object.__new__(record)) for record in (Comparison, DecayPlan, AuditReport, Trajectory, Lineage)
    ]
    known = {*rows, *COLUMNS, *(name for columns in exported for name in columns)}
    assert sorted(name for name in known if not is_explained(name)) == []


def test_meanings_are_sentences_of_commands():
    for name in names():
        for term in terms(name):
            assert term.command in {ANY, *COMMANDS}
            assert term.meaning.endswith((".", ")", "."))
            assert len(term.meaning) < 150


def test_command():
    said = execute("explain", "R", env={"COLUMNS": "112"}).stdout
    assert "In simulate  Growth of the squared norm by momentum." in said
    said = execute("explain", "alpha_change", env={"COLUMNS": "112"}).stdout
    assert "In compare  alpha of the second model less that of the first." in said
    assert "Meaning  Exponent of the upper half" in said
    assert "did you mean relative change" in execute("explain", "relativ change", env={"COLUMNS": "200"}).stderr
