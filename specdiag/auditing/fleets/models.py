"""The models of a fleet's table, each with its findings, the worst first."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from specdiag.auditing.fleets import table
from specdiag.auditing.fleets.rows import FleetRow, are_whole
from specdiag.errors import SourceError
from specdiag.text.printable import printable


class FleetModel(NamedTuple):
    """A model, and what was found in it."""

    row: FleetRow
    findings: tuple[FleetRow, ...]


def load_models(path: Path) -> list[FleetModel]:
    """Read the models of a table, in any order of its rows.

    Args:
        path: the file.

    Returns:
        The model with the most failures first; of equal ones that with the most warnings, then by name.

    Raises:
        MissingExtraError: pyarrow is not installed.
        SourceError: the file is missing, damaged, no such table, or lacks rows.
    """
    models: dict[str, FleetRow] = {}
    findings: dict[str, list[FleetRow]] = {}
    for row in table.read(path):
        if row.kind == "finding":
            findings.setdefault(row.source, []).append(row)
        elif row.source in models:
            raise SourceError(f"{path} has the model '{printable(row.source)}' twice: join tables of different models")
        else:
            models[row.source] = row
    if strangers := findings.keys() - models.keys():
        raise SourceError(f"{path} has findings of '{printable(min(strangers))}', and no row of that model")
    joined = [FleetModel(row, tuple(findings.get(source, ()))) for source, row in models.items()]
    for model in joined:
        if not are_whole((model.row, *model.findings)):
            raise SourceError(
                f"{path} has {len(model.findings)} findings of '{printable(model.row.source)}', and its row counts "
                f"{sum(model.row.counts.values())}: keep all rows of a model"
            )
    return sorted(joined, key=_place)


def _place(model: FleetModel) -> tuple[int, int, int, str]:
    counts = model.row.counts
    return -counts["fail"], -counts["warn"], -counts["info"], model.row.source
