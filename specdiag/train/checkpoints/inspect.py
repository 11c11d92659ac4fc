"""Finds complete checkpoints. The newest one is incomplete if the run was killed while it saved."""

from __future__ import annotations

import json
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from specdiag.checkpoint.formats import TORCH_SUFFIXES
from specdiag.errors import SourceError, UsageError
from specdiag.files import Table, read_whole
from specdiag.optim.rules.participants import NO_EXPONENT
from specdiag.train.checkpoints.manifest import content_defect, manifest_defect
from specdiag.train.checkpoints.trainer_state import read_trainer_state
from specdiag.train.checkpoints.zip_check import zip_defect

_NAME = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"
OPTIMIZER = "optimizer.pt"
SCHEDULER = "scheduler.pt"
_ADAPTER = "adapter_config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def checkpoints_of(run: Path) -> list[Path]:
    """List the `checkpoint-N` folders of a run, newest first."""
    folders = [path for path in run.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()] if run.is_dir() else []
    return sorted(folders, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Return the step in a checkpoint's name."""
    return int(checkpoint.name.rpartition("-")[2])


def find_complete(
    run: Path, why_not: Callable[[Path], str | None] | None = None
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Find the newest complete checkpoint of a run.

    Args:
        run: folder of the run.
        why_not: returns why a checkpoint is not complete, or None; None for `defect`. `damage` also reads all bytes.

    Returns:
        The checkpoint, None if there is none; and the newer ones that are not complete, each with the reason.
    """
    passed_over: list[tuple[Path, str]] = []
    for path in checkpoints_of(run):
        why = (why_not or defect)(path)
        if why is None:
            return path, passed_over
        passed_over.append((path, why))
    return None, passed_over


def has_weights(folder: Path) -> bool:
    """True if a folder has weights that transformers can load."""
    return any((folder / name).is_file() for name in _WEIGHTS) or gguf_in(folder) is not None


def gguf_in(folder: Path) -> str | None:
    """Return the name of the only GGUF file, which transformers dequantises, of a folder without other weights."""
    files = sorted(folder.glob("*.gguf"))
    return files[0].name if len(files) == 1 and not any((folder / name).is_file() for name in _WEIGHTS) else None


def chunks_in(folder: Path) -> str | None:
    """Return the name of the folder of the chunks in which FSDP saved the weights of a checkpoint; None without one."""
    return next((path.parent.name for path in sorted(folder.glob("pytorch_model_fsdp_*/.metadata"))), None)


def refuse_adapter(source: Path) -> None:
    """Refuse an adapter, which has no weights of its own.

    Args:
        source: folder of an adapter, run with adapters as checkpoints, or file of an adapter.

    Raises:
        UsageError: the source is an adapter.
    """
    folder = source.parent if source.name.startswith("adapter_model") else source
    for path in (folder, *checkpoints_of(folder)):
        if (path / _ADAPTER).is_file():
            raise UsageError(
                f"'{path}' is an adapter: decay by exponents is not defined for {NO_EXPONENT}; merge it into its base "
                "model, and train that; specdiag.analyze gives exponents of the merged weights with base=MODEL, and "
                "norm and stable rank of the update without; specdiag.compare(MODEL, adapter, base=MODEL) gives the "
                "norm of the update over that of the weights"
            )


def read_state(checkpoint: Path) -> Table:
    """Read trainer_state.json of a checkpoint.

    Raises:
        SourceError: it is missing or damaged.
    """
    return read_trainer_state(checkpoint / STATE)


def defect(checkpoint: Path) -> str | None:
    """Describe the damage that keeps a Trainer's checkpoint from being continued; None if there is none.

    This reads sizes, headers and directories of the files and the step counters of the optimizer, but no tensors.
    """
    manifest_problem = manifest_defect(checkpoint)
    return manifest_problem if manifest_problem is not None else next(_defects(checkpoint), None)


def damage(checkpoint: Path) -> str | None:
    """Describe damage as `defect` does, and also compare every byte of weights and optimizer with its checksum."""
    return defect(checkpoint) or _changed_bytes(checkpoint, manifest=False)


def check_weights(folder: Path) -> None:
    """Raise SourceError if a file of weights in a folder differs from its checksum. Files without one are accepted."""
    problem = _changed_bytes(folder, manifest=True)
    if problem is not None:
        raise SourceError(f"'{folder}' is damaged: {problem}; copy it again, or name another checkpoint")


def _changed_bytes(folder: Path, *, manifest: bool) -> str | None:
    problem = (manifest_defect(folder) if manifest else None) or content_defect(folder)
    zipped = sorted(path for path in folder.iterdir() if path.suffix in TORCH_SUFFIXES and path.is_file())
    return problem or next((why for path in zipped if (why := zip_defect(path)) is not None), None)


def _defects(folder: Path) -> Iterator[str]:
    if not has_weights(folder):
        chunks = chunks_in(folder)
        yield "no weights" if chunks is None else f"no weights but the chunks in {chunks}"
    for name in ("config.json", OPTIMIZER, SCHEDULER, STATE):
        if not (folder / name).is_file():
            yield f"no {name}"
    if not any(folder.glob("rng_state*.pth")):
        yield "no rng_state.pth"
    for path in sorted(folder.glob("*.json")):
        try:
            index = json.loads(read_whole(path))
        except OSError as error:
            yield f"{path.name} cannot be read: {error.strerror or error}"
            continue
        except (ValueError, RecursionError):
            yield f"{path.name} is no JSON: cut short"
            continue
        if path.name.endswith(".index.json"):
            yield from _missing_shards(folder, index)
    for path in sorted(folder.glob("*.safetensors")):
        yield from _safetensors_defect(path)
    for path in sorted(path for path in folder.iterdir() if path.suffix in TORCH_SUFFIXES):
        yield from _zip_defect(path)
    yield from _step_defects(folder)


def _missing_shards(folder: Path, index: Any) -> Iterator[str]:
    shards: Any = index.get("weight_map", {}) if isinstance(index, dict) else {}
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        yield "its index of weights names no files"
        return
    yield from (f"no {name}" for name in sorted(set(shards.values())) if not (folder / name).is_file())


def _safetensors_defect(path: Path) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):  # compares the header with the size of the file
            pass
    except (SafetensorError, OSError) as error:
        yield f"{path.name} is damaged ({error})"


def _zip_defect(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        if zipped:
            zipfile.ZipFile(path).close()  # the directory of a zip archive is at its end
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        yield f"{path.name} is cut short, or damaged ({error})"
        return
    if not zipped and (path.name in (OPTIMIZER, SCHEDULER) or path.name.startswith("rng_state")):
        yield f"{path.name} is no file of torch.save"


def _step_defects(folder: Path) -> Iterator[str]:
    """Yield files that are of different steps, as after a process that was killed while it overwrote a checkpoint."""
    from specdiag.checkpoint.torch_load import load_torch
    from specdiag.train.checkpoints.finite import check_plain
    from specdiag.train.checkpoints.optimizer_state import step_counters

    try:
        step = read_state(folder)["global_step"]
        counters = step_counters(folder / OPTIMIZER)
        scheduler: Any = load_torch(folder / SCHEDULER, SCHEDULER)
        check_plain(scheduler, SCHEDULER)
    except SourceError as error:
        yield str(error)
        return
    match = _NAME.fullmatch(folder.name)
    if match is not None and int(match[1]) != step:
        yield f"{STATE} is of step {step}"
    if len(counters) > 1:
        yield f"{OPTIMIZER} has parameters at step {min(counters)} and at step {max(counters)}"
    may_skip = (folder / "scaler.pt").exists()  # half precision skips some optimizer steps
    if counters and counters != {step} and not (may_skip and max(counters) <= step):
        yield f"{OPTIMIZER} is of step {max(counters)}, {STATE} of step {step}"
    position = scheduler.get("last_epoch") if isinstance(scheduler, dict) and "lr_lambdas" in scheduler else None
    if position is not None and type(position) is not int:
        yield f"{SCHEDULER} has a position of {position!s:.40}"
    elif position is not None and position != step and not (may_skip and position <= step):
        yield f"{SCHEDULER} is of step {position}, {STATE} of step {step}"
