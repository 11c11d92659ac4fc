"""Settings, selection and provenance of a report as the page shows them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec
from markupsafe import Markup

from specdiag.records import Settings
from specdiag.report import SpectralReport
from specdiag.spectra.tail_rules import TAIL_RULES
from specdiag.views.html.rendering import as_text


def tail(settings: Settings) -> str:
    """Name the tail rule, with its fraction where it uses one."""
    fraction = f" at tail fraction {settings.tail_fraction:g}" if TAIL_RULES[settings.tail].uses_fraction else ""
    return settings.tail + fraction


def selection(settings: Settings) -> str:
    """Describe the chosen part of the checkpoint; empty for all of it."""
    choices: dict[str, Sequence[str]] = {
        "include": settings.include,
        "exclude": settings.exclude,
        "role": settings.roles,
        "experts": () if settings.experts is None else (f"{settings.experts} of each stack (seed {settings.seed})",),
        "role map": () if settings.role_map is None else (settings.role_map,),
    }
    return "; ".join(f"{name} {', '.join(values)}" for name, values in choices.items() if values)


def as_json(report: SpectralReport) -> Markup:
    """Write everything that the numbers depend on as JSON, without invisible characters."""
    record = {
        "source": report.source,
        "settings": report.settings,
        "provenance": report.provenance,
        "complete": report.complete,
        "statuses": dict(Counter(r.status for r in report)),
    }
    text = msgspec.json.format(msgspec.json.encode(record), indent=2).decode()
    return as_text(text)
