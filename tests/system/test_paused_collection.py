"""The collector of cycles is paused while a checkpoint is listed, and goes on as it was."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from specdiag.checkpoint.contents import read_contents
from specdiag.checkpoint.folder import open_folder
from specdiag.checkpoint.reader import open_checkpoint
from specdiag.checkpoint.source import locate
from specdiag.errors import SourceError
from specdiag.system.paused_collection import paused_collection


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    """Begin and end with a collector that runs."""
    gc.enable()
    yield
    gc.enable()


def test_the_collector_goes_on_after_the_last_of_several() -> None:
    first, second = paused_collection(), paused_collection()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not gc.isenabled()
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_a_collector_that_the_caller_switched_off_stays_off() -> None:
    gc.disable()
    with paused_collection():
        pass
    assert not gc.isenabled()


def test_an_error_ends_the_pause(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x10" + bytes(7) + b"x" * 16)
    with pytest.raises(SourceError):
        open_checkpoint(tmp_path)
    assert gc.isenabled()


def test_a_file_is_listed_without_it(tmp_path: Path) -> None:
    save_file({f"norms.{index}.weight": np.ones(1, "f4") for index in range(3000)}, str(tmp_path / "model.safetensors"))
    collections = list[str]()

    def note(phase: str, _info: dict[str, int]) -> None:
        collections.append(phase)

    gc.callbacks.append(note)
    try:
        contents = read_contents(open_folder(locate(tmp_path)), None)
    finally:
        gc.callbacks.remove(note)
    assert len(contents.tensors) == 3000
    assert len(collections) <= 2  # begin and end of the one that follows
