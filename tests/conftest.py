"""Fixtures for real checkpoints. An asset that cannot be fetched is an error, never a skip."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import assets
import pytest
import torch

# No test reads or fills the user's cache of results; those of the cache name their own.
os.environ["SPECDIAG_CACHE"] = ""

# A shell's background jobs ignore Ctrl-C, and so would the commands that are interrupted here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def asset() -> Callable[[str], Path]:
    """Fetches the folder of a checkpoint of tests/assets.py by its name."""
    return assets.fetch


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A BERT encoder of 6 layers in one safetensors file, float32."""
    return assets.fetch("minilm")


@pytest.fixture(scope="session")
def rxnmapper() -> Path:
    """An ALBERT with one shared layer in a legacy torch file: the smallest real transformer here."""
    return assets.fetch("rxnmapper")


@pytest.fixture(scope="session")
def rxnfp() -> Path:
    """Folders bert_pretrained, bert_ft and bert_ft_10k_25s: a BERT of 12 layers and two fine-tunes of it."""
    return assets.fetch("rxnfp")


@pytest.fixture(scope="session")
def fracast() -> Path:
    """A convolutional model without attention, as float32 and as int8 of the same weights."""
    return assets.fetch("fracast")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """What is compared bit for bit is computed on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
