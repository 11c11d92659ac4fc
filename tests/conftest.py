"""Fixtures of several files. A real checkpoint that cannot be fetched is an error, never a skip."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Several workers with a thread for each core wait for one another: before the first import of NumPy or torch.
if _workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))

import assets
import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# No test reads or fills the user's cache of results; those of the cache name their own.
os.environ["SPECDIAG_CACHE"] = ""

# A busy machine takes long for an example now and then.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

# A shell's background jobs ignore Ctrl-C, those under nohup SIGHUP, and so would the commands that are interrupted here.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


NUMERIC = [
    "accelerator",
    "adapter_base",
    "adaptive_decay",
    "alpha_decay",
    "alpha_decay_exponents",
    "alpha_decay_models",
    "alpha_decay_rounding",
    "analysis",
    "arithmetic",
    "audit_near_misses",
    "audit_noise",
    "background_decay",
    "cache",
    "callback",
    "compare",
    "corrected_decay",
    "eigenvalues",
    "effect",
    "farms",
    "groups",
    "lmo",
    "metrics",
    "norm_watch",
    "null",
    "orthogonal",
    "power_iteration",
    "quantised_analysis",
    "recommend",
    "recommend_command",
    "resume_optimizers",
    "scion",
    "solver_threads",
    "square",
    "summary",
    "tails",
    "together",
]
"""Files whose assertions rest on what a BLAS computes: they run again under every kernel that the processor has."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave other files unread where `-m numeric` wants those alone: to import them takes longer than their tests."""
    stem = collection_path.stem
    others = stem.startswith("test_") and stem.removeprefix("test_") not in NUMERIC
    return True if others and config.getoption("markexpr") == "numeric" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of those files `numeric`."""
    for item in items:
        if item.path.stem.removeprefix("test_") in NUMERIC:
            item.add_marker("numeric")


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


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules of the standard library as one text."""
    from plain_run import library_text

    return library_text(tmp_path_factory.mktemp("text"), 30_000)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """A plain Trainer's run of six steps on that text without interruption, with dropout; checkpoints 2, 4, 6."""
    from plain_run import plain_trainer

    folder = tmp_path_factory.mktemp("plain")
    plain_trainer(folder / "run", text, folder).train()
    return folder / "run"


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    """That run once more, to be changed."""
    return shutil.copytree(plain, tmp_path / "run")


@pytest.fixture(scope="module")
def tokenizer(text: Path) -> PreTrainedTokenizerFast:
    """As RoBERTa's, learned from that text."""
    from task_data import roberta_tokenizer

    return roberta_tokenizer(text)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """One token for a word."""
    from task_data import word_tokenizer

    return word_tokenizer()


def _on_one_thread() -> Iterator[None]:
    """Computes on one thread, so that results can be compared bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


one_thread = pytest.fixture(_on_one_thread, name="one_thread")
one_thread_throughout = pytest.fixture(_on_one_thread, scope="module", name="one_thread_throughout")


@pytest.fixture
def as_accelerator(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Sends an analysis down the accelerator's road with the CPU as the device."""

    def send() -> None:
        monkeypatch.setattr("specdiag.analysis.settings.may_have_accelerator", lambda: True)
        monkeypatch.setattr("specdiag.spectra.accelerator.resolve_device", lambda _: "cpu:0")
        monkeypatch.setattr("specdiag.spectra.accelerator.resolve_dtype", lambda _: "float32")

    return send
