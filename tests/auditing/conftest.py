"""Audits of tests do without transformers' own model, whose process takes seconds, unless they ask for it."""

from __future__ import annotations

import pytest

from specdiag.auditing import reference_model


@pytest.fixture
def with_transformers() -> None:
    """Compare with transformers' own model, as audits do by default."""


@pytest.fixture(autouse=True)
def rules_on_shapes_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "with_transformers" not in request.fixturenames:
        monkeypatch.setattr(reference_model, "find_spec", lambda _: None)
