"""Spectra of dequantised weights: rounding noise is not taken for a tail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import with_singular_values
from quantised_files import QUERY, STEM, opened, weight, written
from quantisers import FORMATS, Format, compressed
from read_back import values

import specdiag


def test_records_are_marked(tmp_path: Path) -> None:
    form = FORMATS["gptq4"]
    report = specdiag.analyze(written(tmp_path, form.quantise(STEM, weight(256, 256)).tensors, form.config))
    (record,) = report
    assert (record.key, record.dequantized, record.storage_dtype) == (QUERY, True, "gptq-int4")
    assert record.status == "ok"
    assert record.alpha is not None


def test_what_rounding_alone_makes_is_no_tail() -> None:
    """A matrix of rank 16 in 4 bits has full rank, of noise: that is called low rank, no exponent of the noise is given."""
    rng = np.random.default_rng(0)
    w = (rng.standard_normal((256, 16)) @ rng.standard_normal((16, 256))).astype(np.float32)
    for name, status in (("gptq4", "low_rank"), ("nf4", "low_rank"), ("int8", "low_rank")):
        form = FORMATS[name]
        checkpoint = opened(form.quantise(STEM, w).tensors, form.config)
        (record,) = specdiag.analyze(checkpoint)
        assert np.linalg.matrix_rank(values(checkpoint, QUERY)) > 250
        assert (record.status, record.alpha) == (status, None)


# alpha of the reference notes: a spectrum of exact Pareto quantiles, 256x512, before and after rounding
REFERENCE = {
    1.7: {"fp8-tensor": 1.70903, "int8": 1.70610, "ct4-64": 1.76863},
    2.5: {"fp8-tensor": 2.51626, "int8": 2.50965, "ct4-64": 2.54119},
}


@pytest.mark.parametrize("alpha", REFERENCE)
def test_heavy_tails_look_lighter(alpha: float) -> None:
    """Known results for these spectra, whose bases were random: to 0.01."""
    quantiles = (1 - (np.arange(256) + 0.5) / 256) ** (-1 / (alpha - 1))
    w = with_singular_values(np.sqrt(quantiles), (256, 512)).astype(np.float32)
    before = specdiag.analyze({QUERY: torch.from_numpy(w)})[QUERY].alpha
    assert before is not None
    forms = {**FORMATS, "ct4-64": Format("", "int4", compressed(4, 64))}
    for name, expected in REFERENCE[alpha].items():
        after = specdiag.analyze(forms[name].quantise(STEM, w).tensors)[QUERY].alpha
        assert after == pytest.approx(expected, abs=0.012)
        if name != "int8":
            assert after > before
