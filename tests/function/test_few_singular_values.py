"""The terminal says why heads of few rows have no alpha, and says it of no others."""

import io

import numpy as np
import torch
from related_models import HEAD_DIM, llama, opened
from rich.console import Console
from specdiag_cli import function_tables

import specdiag


def printed(state):
    report = specdiag.analyze(opened(state), function=True)
    console = Console(width=112, record=True, file=io.StringIO())
    function_tables.show(report.summary, report.function, console, all_rows=False)
    return console.export_text()


def test_heads_of_few_rows_have_no_alpha():
    assert HEAD_DIM < 50
    assert "qk, ov, du: no alpha, because each has fewer than 50 singular values" in printed(llama())


def test_values_that_are_not_finite_are_another_reason():
    state = llama()
    for name in state:
        if "q_proj" in name:
            state[name] = torch.full_like(state[name], np.nan)
    assert "\nov, du: no alpha" in printed(state)
    assert "qk, ov, du:" not in printed(state)
