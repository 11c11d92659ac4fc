"""Reads weight decay, lr, and steps done and left from the files of a run.

It reads checkpoints of a Hugging Face Trainer (optimizer.pt, scheduler.pt, trainer_state.json, training_args.bin), and
single files with an optimizer in them (`{"optimizer": ...}` as training scripts write it, nanoGPT's ckpt.pt,
Lightning's .ckpt). No code in them is run, and only the groups of an optimizer are read, not its moments.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from msgspec import field

from specdiag.errors import SourceError, UsageError
from specdiag.files import read_whole
from specdiag.records import Record
from specdiag.text.names import listed
from specdiag.train.saved_values import FoundSettings, largest, mapping, number, optional_number, step_count, steps

_OPTIMIZER = ("optimizer.pt", "optimizer.bin")
_SCHEDULER = ("scheduler.pt", "scheduler.bin")
_STATE = "trainer_state.json"
_ARGUMENTS = "training_args.bin"
_HOLDERS = ("optimizer", "optimizer_state_dict", "optim", "optimizer_states")
_STEPS = ("global_step", "iter_num", "iteration", "step")
_ARGUMENT_TYPES = {
    "transformers.training_args": ("TrainingArguments", "OptimizerNames"),
    "transformers.trainer_utils": ("SaveStrategy", "IntervalStrategy", "SchedulerType", "HubStrategy"),
    "transformers.trainer_pt_utils": ("AcceleratorConfig",),
    "accelerate.state": ("PartialState",),
    "accelerate.utils.dataclasses": ("DistributedType",),
}
"""Classes in a plain training_args.bin, by module: dataclasses and enumerations, which run no other code when made."""


class RunSettings(Record, frozen=True, kw_only=True):
    """Settings and progress of a run; a field is None if no file has it."""

    weight_decay: float | None = None
    """Weight decay of the groups that decay; 0.0 if none does."""
    no_decay: bool | None = None
    """True if some group has decay 0 (usually norms and biases)."""
    decoupled: bool | None = None
    """True if the decay acts on the weights, as AdamW's, and not through the gradient."""
    lr: float | None = None
    """Learning rate of the next step if the optimizer has it; else the last logged one."""
    peak_lr: float | None = None
    """Learning rate before the scheduler's factor: what the schedule starts from or warms up to."""
    steps_done: int | None = None
    steps_total: int | None = None
    origin: dict[str, str] = field(default_factory=dict[str, str])
    """Name of the file that each field came from."""
    notes: tuple[str, ...] = ()

    @property
    def steps_left(self) -> int | None:
        """Steps left until the planned end; None if unknown."""
        if self.steps_done is None or self.steps_total is None:
            return None
        return max(self.steps_total - self.steps_done, 0)


def read_run(folder: Path) -> RunSettings | None:
    """Read the settings of a run from the files in its folder.

    training_args.bin is a pickle of transformers' own classes. It is opened only if a setting is still missing and
    transformers is installed, and with no other classes allowed; otherwise a note says that it was skipped.

    Args:
        folder: folder of a checkpoint or of a run, whose newest checkpoint is read, or one file. A file that may
            hold an optimizer (.pt, .pth, .ckpt) is read itself; for any other, the Trainer files in its folder are.

    Returns:
        None if there are no such files.

    Raises:
        SourceError: a file is damaged, wants to run code, or has unexpected content.
        UsageError: the groups have several different decays, so that none of them is the base.
    """
    settings = FoundSettings()
    if folder.is_file() and _may_be_checkpoint(folder):
        _read_checkpoint(folder, settings)
    elif folder.is_file():
        _read_trainer(folder.parent, settings)
    elif folder.is_dir():
        _read_trainer(folder, settings)
        checkpoint = None if settings else _only_checkpoint(folder)
        if checkpoint is not None:
            _read_checkpoint(checkpoint, settings)
        elif not settings and (newest := _newest(folder)) is not None:
            return read_run(newest)
    return RunSettings(**settings.values, origin=settings.origin, notes=tuple(settings.notes)) if settings else None


def _newest(folder: Path) -> Path | None:
    """Find the newest checkpoint of a run; None where the folder holds no steps."""
    from specdiag.trajectories.steps import find_steps

    try:
        newest = Path(find_steps(str(folder))[-1].location)
    except SourceError:
        return None
    return newest if newest.exists() and newest != folder else None


def _read_trainer(folder: Path, settings: FoundSettings) -> None:
    for optimizer in _present(folder, _OPTIMIZER):
        groups = list(_groups(_load(optimizer)))
        if not groups:
            raise SourceError(f"'{optimizer}' holds no parameter groups: it is not what an optimizer saves")
        _read_groups(groups, optimizer, settings)
    for scheduler in _present(folder, _SCHEDULER):
        if "peak_lr" not in settings.values:
            rates = mapping(_load(scheduler), scheduler).get("base_lrs")
            rates = cast("list[object]", rates) if isinstance(rates, (list, tuple)) else []
            settings.add("peak_lr", largest(number(rate, scheduler) for rate in rates), scheduler)
    for state in _present(folder, (_STATE,)):
        _read_state(state, settings)
    for arguments in _present(folder, (_ARGUMENTS,)):
        if "weight_decay" not in settings.values or "peak_lr" not in settings.values:
            _read_arguments(arguments, settings)


def _read_state(path: Path, settings: FoundSettings) -> None:
    try:
        state = mapping(json.loads(read_whole(path)), path)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"'{path}' is not a readable JSON file ({error}): copy the checkpoint again") from error
    except OSError as error:
        raise SourceError(f"'{path}' cannot be read: {error.strerror}") from error
    settings.add("steps_done", step_count(state, "global_step", path), path)
    settings.add("steps_total", step_count(state, "max_steps", path) or None, path)
    history = state.get("log_history")
    logged = [entry for entry in history if isinstance(entry, Mapping)] if isinstance(history, list) else []
    rates = [entry["learning_rate"] for entry in logged if "learning_rate" in entry]
    if rates:
        settings.add("lr", number(rates[-1], path), path)


def _read_arguments(path: Path, settings: FoundSettings) -> None:
    if importlib.util.find_spec("transformers") is None:
        settings.notes.append(f"{path.name} was left unread: opening it takes transformers, which is not installed.")
        return
    from specdiag.checkpoint.torch_load import ForeignPickleError, load_torch

    try:
        arguments = cast("Any", load_torch(path, str(path), tuple(_argument_types())))
    except ForeignPickleError:
        settings.notes.append(f"{path.name} was left unread: it holds more than transformers' own settings.")
        return
    settings.add("weight_decay", optional_number(getattr(arguments, "weight_decay", None), path), path)
    settings.add("peak_lr", optional_number(getattr(arguments, "learning_rate", None), path), path)


def _argument_types() -> Iterator[type]:
    for module, names in _ARGUMENT_TYPES.items():
        try:
            loaded = importlib.import_module(module)
        except ImportError:
            continue
        yield from (getattr(loaded, name) for name in names if hasattr(loaded, name))


def _only_checkpoint(folder: Path) -> Path | None:
    """Return nanoGPT's ckpt.pt, or the only torch file of a folder without safetensors files; else None."""
    nanogpt_file = folder / "ckpt.pt"
    if nanogpt_file.is_file():
        return nanogpt_file
    files = [path for path in folder.iterdir() if _may_be_checkpoint(path) and path.is_file()]
    return files[0] if len(files) == 1 and not any(folder.glob("*.safetensors")) else None


def _read_checkpoint(path: Path, settings: FoundSettings) -> None:
    content = _load(path)
    if not isinstance(content, Mapping):
        return
    content = _numbers(cast("Mapping[Any, Any]", content))
    groups = [group for name in _HOLDERS if name in content for group in _groups(content[name])]
    groups = groups or list(_groups(content))
    if not groups:
        return
    _read_groups(groups, path, settings)
    done = next((content[name] for name in _STEPS if name in content), None)
    settings.add("steps_done", steps(done), path)
    config = content.get("config")
    if "iter_num" in content and isinstance(config, Mapping):  # as nanoGPT keeps its settings
        config = cast("Mapping[Any, Any]", config)
        settings.add("steps_total", steps(config.get("max_iters")), path)
        settings.add("peak_lr", optional_number(config.get("learning_rate"), path), path)


def _groups(content: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """Yield the parameter groups of one saved optimizer, or of several in a list or dictionary."""
    if isinstance(content, Mapping):
        content = cast("Mapping[Any, Any]", content)
        groups = content.get("param_groups")
        if isinstance(groups, list):
            yield from (_numbers(cast("Mapping[str, Any]", group)) for group in groups if isinstance(group, Mapping))
        elif depth == 0:
            for inner in content.values():
                yield from _groups(inner, 1)
    elif isinstance(content, (list, tuple)) and depth == 0:
        for inner in cast("Sequence[Any]", content):
            yield from _groups(inner, 1)


def _numbers(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put plain numbers in the place of numpy's."""
    from specdiag.checkpoint.numpy_pickles import plain_number

    return {name: plain_number(value) for name, value in values.items()}


def _read_groups(groups: Sequence[Mapping[str, Any]], path: Path, settings: FoundSettings) -> None:
    n_tensors: dict[float, int] = {}
    for group in groups:
        if "weight_decay" in group:
            decay = number(group["weight_decay"], path)
            tensors = group.get("params")
            n_tensors[decay] = n_tensors.get(decay, 0) + (len(tensors) if isinstance(tensors, list) else 0)
    decays = sorted(decay for decay in n_tensors if decay)
    if len(decays) > 1:
        values = listed((f"{decay:g} ({n_tensors[decay]} tensors)" for decay in decays), 8)
        raise UsageError(f"'{path}' has groups of different weight decay: {values}; give the base as weight_decay=")
    if n_tensors:
        settings.add("weight_decay", decays[0] if decays else 0.0, path)
        settings.add("no_decay", 0.0 in n_tensors, path)
    deciding = [group for group in groups if group.get("weight_decay")] or list(groups)
    kinds = [group.get("decoupled_weight_decay") for group in deciding]
    if all(kind is True for kind in kinds) or all(kind is False for kind in kinds):
        settings.add("decoupled", kinds[0], path)
    rates = {number(group["lr"], path) for group in deciding if "lr" in group}
    if len(rates) > 1:
        settings.notes.append(f"{path.name} has groups of lr {min(rates):g} to {max(rates):g}: the largest is taken.")
    settings.add("lr", largest(rates), path)
    settings.add("peak_lr", largest({number(g["initial_lr"], path) for g in deciding if "initial_lr" in g}), path)


def _load(path: Path) -> Any:
    """Open a file of torch.save; objects in it are not made."""
    from specdiag.checkpoint.torch_archive import open_torch

    return open_torch(path, str(path)).content


def _present(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the first of these files that exists, as a list of one or none."""
    return [folder / name for name in names if (folder / name).is_file()][:1]


def _may_be_checkpoint(path: Path) -> bool:
    """True if, by its name, a file may hold weights and optimizer together, as torch saves them."""
    from specdiag.checkpoint.formats import TORCH_SUFFIXES  # readers need numpy

    return path.suffix in TORCH_SUFFIXES and path.suffix != ".bin"
