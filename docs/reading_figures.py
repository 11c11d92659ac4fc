"""Draw a picture of each number for docs/reading.md: its values in MiniLM, by role, beside those of random matrices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from specdiag.records import ModuleRecord, stored_role
from specdiag.report import SpectralReport
from specdiag.views.figures.axes import log_axis
from specdiag.views.figures.palette import palette

ROLES = ("q", "k", "v", "o", "up", "down", "embed")
NULLS: dict[str, Callable[[ModuleRecord], float | None]] = {
    "alpha": lambda r: r.alpha_null,
    "square_alpha": lambda r: 2.12,
    "rho": lambda r: 1.0,
    "z": lambda r: 0.0,
    "mp_spikes": lambda r: 0.0,
}
"""What random matrices score, where that is known for each matrix."""
NUMBERS = (
    "square_alpha", "alpha", "alpha_null", "rho", "z", "ks", "pl_alpha", "stable_rank", "effective_rank",
    "spectral_norm", "frobenius_norm", "matrix_rank", "mp_spikes", "detx_k", "alpha_weighted", "gauge_shift",
)  # fmt: skip
_LOGARITHMIC = ("spectral_norm", "frobenius_norm", "alpha_null", "pl_alpha")


def draw(report: SpectralReport, folder: Path, dpi: int) -> list[Path]:
    """Draw a strip for each number.

    Args:
        report: of MiniLM, with its function.
        folder: for the pictures.
        dpi: dots per inch.

    Returns:
        The files.
    """
    folder.mkdir(exist_ok=True)
    return [_strip(report, name, folder / f"{name}.png", dpi) for name in NUMBERS]


def _strip(report: SpectralReport, name: str, path: Path, dpi: int) -> Path:
    figure = Figure(figsize=(6.4, 1.9), layout="constrained")
    axes = figure.subplots()
    found = [role for role in ROLES if any(r.role == role and getattr(r, name) is not None for r in report)]
    for height, role in enumerate(found):
        look = palette().roles[stored_role(role)]
        rows = [r for r in report if r.role == role and getattr(r, name) is not None]
        axes.plot([getattr(r, name) for r in rows], [height] * len(rows), "o", color=look.colour, alpha=0.7, ms=5)
        for null in {round(v, 2) for r in rows if name in NULLS and (v := NULLS[name](r)) is not None}:
            axes.plot([null, null], [height - 0.4, height + 0.4], color=palette().null, linestyle="--", linewidth=1.2)
    axes.set_yticks(range(len(found)), found)
    axes.set_ylim(len(found) - 0.5, -0.5)
    if name in _LOGARITHMIC:
        values = [getattr(r, name) for r in report if r.role in found and getattr(r, name) is not None]
        log_axis(axes.xaxis, min(values) * 0.9, max(values) * 1.1, 6)
    axes.set_xlabel(f"{name} in MiniLM, a dot a matrix" + ("; dashed: random matrices" if name in NULLS else ""))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=dpi, metadata={"Software": None})
    return path
