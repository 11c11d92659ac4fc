"""State of this machine as `specdiag doctor` shows it: versions, BLAS, memory, GPU, kept results, optional packages."""

from __future__ import annotations

import os
import platform
import webbrowser
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from specdiag.errors import UsageError
from specdiag.system.distributions import version

REQUIRED = (
    "torch", "numpy", "scipy", "msgspec", "safetensors", "huggingface-hub", "matplotlib", "threadpoolctl", "typer",
)  # fmt: skip
OPTIONAL: dict[str, str] = {
    "gguf": "quantised GGUF files",
    "transformers": "train; audit's comparison with the reference model",
    "accelerate": "train",
    "datasets": "train on data of the hub",
    "pillow": "train on images",
    "pyarrow": "-f parquet, parquet data of train",
    "plotly": "spectra that can be zoomed in report's page",
    "pandas": "to_pandas() of results",
    "trackio": "watch --to trackio",
    "wandb": "watch --to wandb",
    "tensorboard": "watch --to tensorboard",
}
"""Packages that are not needed by all, and what they are needed for."""


_IN_THE_TERMINAL = ("www-browser", "links", "elinks", "lynx", "w3m")
"""Browsers that would take the terminal over."""


@dataclass(frozen=True, slots=True)
class Cache:
    """State of the folder of kept results.

    Attributes:
        folder: None where nothing is kept.
        entries: how many results are kept.
        bytes: that they take.
        limit: of the bytes.
        refused: why the folder is not used; None where it is.
    """

    folder: str | None = None
    entries: int = 0
    bytes: int = 0
    limit: int = 0
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """State of this machine.

    Attributes:
        specdiag: version.
        python: version, system and processor.
        versions: of what is required; None where it is missing.
        blas: kernel that SciPy's BLAS chose, and from which size on torch solves.
        processors: that this process may use.
        memory: bytes, within a container's limit.
        gpu: its name, or why there is none.
        cache: kept results.
        hub_token: True where one is found. It is never shown.
        hub_offline: True where HF_HUB_OFFLINE forbids downloads.
        browser: what `report --open` opens; None where there is none.
        optional: versions of optional packages; None where one is missing.
        problems: what keeps every analysis from running.
    """

    specdiag: str
    python: str
    versions: dict[str, str | None]
    blas: str
    processors: int
    memory: int
    gpu: str
    cache: Cache
    hub_token: bool
    hub_offline: bool
    browser: str | None
    optional: dict[str, str | None]
    problems: list[str] = field(default_factory=list[str])


def examine() -> Machine:
    """Look at this machine. torch is loaded only where a driver of a GPU is."""
    from specdiag.resources import available_cpus, total_memory

    versions = {name: _version(name) for name in REQUIRED}
    missing = [name for name, found in versions.items() if found is None]
    problems = [f"{', '.join(missing)} missing: pip install {' '.join(missing)}"] if missing else []
    try:
        kept = _cache()
    except UsageError as error:
        kept = Cache(refused=str(error))
        problems.append(str(error))
    return Machine(
        specdiag=_version("specdiag") or "not installed",
        python=f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        versions=versions,
        blas="unknown" if missing else _blas(),
        processors=available_cpus(),
        memory=total_memory(),
        gpu=_gpu(),
        cache=kept,
        hub_token=_has_token(),
        hub_offline=os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
        browser=browser(),
        optional={name: _version(name) for name in OPTIONAL},
        problems=problems,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _blas() -> str:
    from specdiag.resources import openblas_kernel
    from specdiag.spectra.solvers import NEVER, crossing

    kernel, row = openblas_kernel(), crossing()
    solver = "OpenBLAS" if kernel else "SciPy's BLAS, which is no OpenBLAS"
    by_torch = (
        f"; torch takes matrices of {row.float64} rows and more in float64, of {row.float32} in float32"
        if row.float64 != NEVER
        else ""
    )
    return f"{solver}{f', kernel {kernel}' if kernel else ''}{by_torch}"


def _gpu() -> str:
    from specdiag.resources import may_have_accelerator

    if not may_have_accelerator():
        return "none"
    try:
        import torch
    except ImportError as error:
        return f"unknown, torch cannot be loaded ({error})"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    if torch.backends.mps.is_available():
        return "Apple MPS, for Gram matrices in float32"
    return f"a driver is there, and torch {torch.__version__} sees no device: is it a build without CUDA?"


def _cache() -> Cache:
    from specdiag.analysis.cache_ownership import ForeignFolderError, check_folder
    from specdiag.analysis.cache_store import Store, default_folder

    folder = default_folder()
    if folder is None:
        return Cache()
    try:
        for each in (folder, folder / "results"):
            check_folder(each)
    except ForeignFolderError as error:
        return Cache(str(folder), refused=str(error))
    store = Store(folder)
    amount = store.amount()
    return Cache(str(folder), amount.entries, amount.bytes, store.limit)


def _has_token() -> bool:
    try:
        from huggingface_hub import get_token
    except ImportError:
        return False
    return bool(get_token())


def browser() -> str | None:
    """Name what opens a page in a window; None where there is no window, or only a browser of the terminal."""
    try:
        found = webbrowser.get()
    except webbrowser.Error:
        return None
    name = str(getattr(found, "name", "the system's browser"))
    return None if Path(name).name in _IN_THE_TERMINAL else name
