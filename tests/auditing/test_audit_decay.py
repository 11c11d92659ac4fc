"""Whether norms are consistent with a weight decay."""

from __future__ import annotations

import numpy as np
import pytest
from audited_models import found, name, row
from models import PLACES
from saved_reports import made

import specdiag
from specdiag.errors import UsageError
from specdiag.report import SpectralReport


def decayed(rms: float, n: int = 12, spread: float = 1.1) -> SpectralReport:
    sizes = rms * spread ** np.linspace(-1, 1, n)
    return made(
        [
            row(name(i, PLACES[0]), "q", i, frobenius_norm=float(size) * 64, rows=64, cols=64)
            for i, size in enumerate(sizes)
        ]
    )


@pytest.mark.parametrize(
    ("rms", "answer", "fires"),
    [
        (0.0707, "consistent", False),  # in balance: sqrt(1e-3 / (2 * 0.1)), S1 of the reference
        (0.0707 * 0.45, "consistent", False),  # after a cosine to zero
        (0.0707 * 1.6, "consistent", False),
        (0.0707 * 2.5, "inconsistent", True),
        (0.0707 * 0.45 / 2.5, "inconsistent", True),
        (0.0707 * 2, "cannot tell", False),
    ],
)
def test_decay_is_consistent_or_not_and_never_a_number(rms, answer, fires):
    audit = specdiag.audit(decayed(rms), weight_decay=0.1, lr=1e-3)
    assert audit.decay is not None
    assert audit.decay.answer == answer
    assert audit.decay.expected_high == pytest.approx(0.0707106781)
    assert found(audit) == ({("decay", None)} if fires else set())
    if fires:
        assert audit.findings[0].value == pytest.approx(2.5, rel=1e-3)


def test_decay_cannot_be_told_from_little(tmp_path):
    assert specdiag.audit(decayed(0.5, n=7), weight_decay=0.1, lr=1e-3).decay.answer == "cannot tell"
    short = specdiag.audit(decayed(0.5), weight_decay=0.1, lr=1e-3, steps=9_000)
    assert short.decay.answer == "cannot tell"
    assert "10000 over which weights forget" in short.decay.reason
    assert specdiag.audit(decayed(0.5), weight_decay=0.1, lr=1e-3, steps=20_000).decay.answer == "inconsistent"
    for wrong in ({"weight_decay": 0.1}, {"lr": 1e-3}, {"weight_decay": 0.0, "lr": 1.0}, {"steps": 9},
                  {"weight_decay": 2.0, "lr": 1.0}, {"weight_decay": 0.1, "lr": 1e-3, "steps": 0}):  # fmt: skip
        with pytest.raises(UsageError):
            specdiag.audit(decayed(0.5), **wrong)
