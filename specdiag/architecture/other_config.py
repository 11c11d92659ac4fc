"""A config.json of another model: its layers have norms that the tensors lack, and these have those of another type."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from specdiag.architecture import config as settings
from specdiag.architecture.wiring import WIRINGS, Wiring
from specdiag.files import shortened
from specdiag.text.names import listed

_IN_BLOCK = re.compile(r"(?:^|.*?\.)\d{1,9}\.(.+)\.[^.]+")
"""Name of a tensor of a layer: the path in the layer comes after its number."""
_MISMATCH = re.compile(r"(config\.json names .* but the tensors are named as those of .*)\.", re.DOTALL)

_NAMED_OTHERWISE = ("bart",)
"""Types whose norms have other names than those of the entry that they share."""


def other_type(config: Mapping[str, object], names: Iterable[str]) -> str | None:
    """Say that a configuration is that of another type than the tensors; None where nothing shows it.

    It compares only types whose norms specdiag knows, and names as Hugging Face writes them.

    Args:
        config: config.json, parsed.
        names: of all tensors.

    Returns:
        A sentence for the notes of a report.
    """
    types = settings.model_types(settings.sections(config, None))
    if not types or types[0] in _NAMED_OTHERWISE:
        return None
    stated = frozenset[str]().union(*(_norms(w) for w in WIRINGS if types[0] in w.model_type))
    held = {match[1] for name in names if (match := _IN_BLOCK.fullmatch(name))}
    if not stated or stated & held:
        return None
    others = [w for w in WIRINGS if w.model_type and types[0] not in w.model_type and _norms(w) and _norms(w) <= held]
    if not others:
        return None
    best = max(others, key=lambda w: len(_norms(w)))
    return (
        f"config.json names {shortened(types[0], 40)}, whose layers have {listed(sorted(stated), 1)}, "
        f"but the tensors are named as those of {best.model_type[0]}, with {listed(sorted(_norms(best)), 1)}."
    )


def mismatch(notes: Iterable[str]) -> str | None:
    """Find the sentence of `other_type` among the notes of a report, without its full stop.

    Args:
        notes: of a report.
    """
    return next((match[1] for note in notes if (match := _MISMATCH.fullmatch(note))), None)


def _norms(wiring: Wiring) -> frozenset[str]:
    behind = (wiring.post_attn, wiring.post_mlp)
    return wiring.norms | {path for path in behind if path is not None}
