"""Processes of `watch` are forked here: a new one would import torch for each step."""

from __future__ import annotations

import os
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import PATIENCE
from preloaded import run_forked

from specdiag.trajectories import one_step


class Forked:
    """As much of `subprocess.Popen` as a step needs."""

    def __init__(self, line: list[str], **_: Any) -> None:
        self._line = line[1:]

    def communicate(self, data: bytes) -> tuple[bytes, None]:
        """Run to the end."""
        done = run_forked([self._line], [os.environ], None, PATIENCE, data.decode())[0]
        self.returncode = done.returncode
        return done.stdout.encode(), None


@pytest.fixture(autouse=True)
def forked_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read steps in forked processes."""
    monkeypatch.setattr(one_step, "subprocess", SimpleNamespace(Popen=Forked, PIPE=subprocess.PIPE))
