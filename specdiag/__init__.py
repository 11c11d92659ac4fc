"""Spectral diagnostics of transformer checkpoints.

    >>> import specdiag
    >>> report = specdiag.analyze("org/name")
    >>> [(role.role, role.n) for role in report.summary.roles][:2]
    [('q', 2), ('k', 2)]

Importing the package is free: numpy, scipy and torch load when a function needs them.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specdiag import plot
    from specdiag.analysis.analyze import AnalysisFailed, Interrupted, analyze
    from specdiag.analysis.fit_test import fit_test
    from specdiag.analysis.run import Progress
    from specdiag.architecture.roles import roles
    from specdiag.auditing.audit import audit
    from specdiag.auditing.records import AuditReport, Finding, load_audit
    from specdiag.checkpoint.tensors import Checkpoint, WeightMatrix
    from specdiag.comparison.compare import compare
    from specdiag.comparison.records import Comparison, load_comparison
    from specdiag.decay.plan import DecayPlan, PlanEntry, load_plan
    from specdiag.decay.power_lines import PowerLines, power_lines
    from specdiag.decay.recommend import recommend
    from specdiag.dynamics.records import Simulation, load_simulation
    from specdiag.dynamics.simulate import simulate
    from specdiag.errors import ComputationError, MissingExtraError, SourceError, SpecdiagError, UsageError
    from specdiag.kinship.lineage import lineage
    from specdiag.kinship.records import Lineage
    from specdiag.rates.plan import RateEntry, RatePlan, load_rates
    from specdiag.rates.recommend_rates import recommend_rates
    from specdiag.rates.sparsities import sparsities
    from specdiag.records import ModuleRecord, ModuleRole, Settings, Source
    from specdiag.reference.build import build_reference
    from specdiag.reference.ranges import ReferenceRanges, load_reference
    from specdiag.report import SpectralReport, load_report
    from specdiag.trajectories.load import load_trajectory
    from specdiag.trajectories.records import Trajectory
    from specdiag.trajectories.trajectory import TrajectoryInterrupted, trajectory
    from specdiag.trajectories.watching import watch
    from specdiag.verification.records import Verification
    from specdiag.verification.verify import verify
    from specdiag.views.html.page import html_report

_HOMES = {
    "analyze": "analysis.analyze",
    "AnalysisFailed": "analysis.analyze",
    "Interrupted": "analysis.analyze",
    "fit_test": "analysis.fit_test",
    "Progress": "analysis.run",
    "roles": "architecture.roles",
    "audit": "auditing.audit",
    "AuditReport": "auditing.records",
    "Finding": "auditing.records",
    "load_audit": "auditing.records",
    "Checkpoint": "checkpoint.tensors",
    "WeightMatrix": "checkpoint.tensors",
    "compare": "comparison.compare",
    "Comparison": "comparison.records",
    "load_comparison": "comparison.records",
    "DecayPlan": "decay.plan",
    "PlanEntry": "decay.plan",
    "load_plan": "decay.plan",
    "PowerLines": "decay.power_lines",
    "power_lines": "decay.power_lines",
    "html_report": "views.html.page",
    "plot": "plot",
    "Simulation": "dynamics.records",
    "load_simulation": "dynamics.records",
    "simulate": "dynamics.simulate",
    "ComputationError": "errors",
    "MissingExtraError": "errors",
    "SourceError": "errors",
    "SpecdiagError": "errors",
    "UsageError": "errors",
    "Lineage": "kinship.records",
    "lineage": "kinship.lineage",
    "recommend": "decay.recommend",
    "RateEntry": "rates.plan",
    "RatePlan": "rates.plan",
    "load_rates": "rates.plan",
    "recommend_rates": "rates.recommend_rates",
    "sparsities": "rates.sparsities",
    "ReferenceRanges": "reference.ranges",
    "build_reference": "reference.build",
    "load_reference": "reference.ranges",
    "ModuleRecord": "records",
    "ModuleRole": "records",
    "Settings": "records",
    "Source": "records",
    "SpectralReport": "report",
    "load_report": "report",
    "Trajectory": "trajectories.records",
    "load_trajectory": "trajectories.load",
    "TrajectoryInterrupted": "trajectories.trajectory",
    "trajectory": "trajectories.trajectory",
    "watch": "trajectories.watching",
    "Verification": "verification.records",
    "verify": "verification.verify",
}

__all__ = [
    "AnalysisFailed",
    "AuditReport",
    "Checkpoint",
    "Comparison",
    "ComputationError",
    "DecayPlan",
    "Finding",
    "Interrupted",
    "Lineage",
    "MissingExtraError",
    "ModuleRecord",
    "ModuleRole",
    "PlanEntry",
    "PowerLines",
    "Progress",
    "RateEntry",
    "RatePlan",
    "ReferenceRanges",
    "Settings",
    "Simulation",
    "Source",
    "SourceError",
    "SpecdiagError",
    "SpectralReport",
    "Trajectory",
    "TrajectoryInterrupted",
    "UsageError",
    "Verification",
    "WeightMatrix",
    "analyze",
    "audit",
    "build_reference",
    "compare",
    "fit_test",
    "html_report",
    "lineage",
    "load_audit",
    "load_comparison",
    "load_plan",
    "load_rates",
    "load_reference",
    "load_report",
    "load_simulation",
    "load_trajectory",
    "plot",
    "power_lines",
    "recommend",
    "recommend_rates",
    "roles",
    "simulate",
    "sparsities",
    "trajectory",
    "verify",
    "watch",
]

logging.getLogger("specdiag").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("specdiag.system.distributions").version("specdiag")
    if name in ("optim", "train"):
        return importlib.import_module(f"specdiag.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'specdiag' has no attribute '{name}'")
    home = importlib.import_module(f"specdiag.{_HOMES[name]}")
    value = getattr(home, name, home)  # `plot` is the module itself
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
