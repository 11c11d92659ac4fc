"""Reads weight decay, lr, and steps done and left from the files of a run.

Read are a Hugging Face Trainer checkpoint (optimizer.pt, scheduler.pt, trainer_state.json, training_args.bin), and
single files with the optimizer in them (`{"optimizer": ...}` as training scripts write it, nanoGPT's ckpt.pt,
Lightning's .ckpt). Nothing they carry is run, and of an optimizer only the groups are read, not its moments.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from msgspec import field

from specdiag.errors import SourceError, UsageError
from specdiag.files import read_whole
from specdiag.records import Record
from specdiag.text.names import listed

_OPTIMIZER = ("optimizer.pt", "optimizer.bin")
_SCHEDULER = ("scheduler.pt", "scheduler.bin")
_STATE = "trainer_state.json"
_ARGUMENTS = "training_args.bin"
_HOLDERS = ("optimizer", "optimizer_state_dict", "optim", "optimizer_states")
_STEPS = ("global_step", "iter_num", "iteration", "step")
_MOST_STEPS = 10**15
_ARGUMENT_TYPES = {
    "transformers.training_args": ("TrainingArguments", "OptimizerNames"),
    "transformers.trainer_utils": ("SaveStrategy", "IntervalStrategy", "SchedulerType", "HubStrategy"),
    "transformers.trainer_pt_utils": ("AcceleratorConfig",),
    "accelerate.state": ("PartialState",),
    "accelerate.utils.dataclasses": ("DistributedType",),
}
"""All that a plain training_args.bin names: dataclasses and enumerations, whose making runs nothing else."""


class RunSettings(Record, frozen=True, kw_only=True):
    """Settings and progress of a run; None if no file has them."""

    weight_decay: float | None = None
    """Weight decay of the groups that decay; 0.0 if none does."""
    no_decay: bool | None = None
    """True if some group has decay 0 (usually norms and biases)."""
    decoupled: bool | None = None
    """True if the decay acts on the weights, as AdamW's, and not through the gradient."""
    lr: float | None = None
    """Learning rate of the next step if the optimizer has it; else the last one logged."""
    peak_lr: float | None = None
    """Before the scheduler's factor: the lr that the schedule starts from or warms up to."""
    steps_done: int | None = None
    steps_total: int | None = None
    origin: dict[str, str] = field(default_factory=dict[str, str])
    """The file that each of the above came from."""
    notes: tuple[str, ...] = ()

    @property
    def steps_left(self) -> int | None:
        """Steps until the end that the run was planned for."""
        if self.steps_done is None or self.steps_total is None:
            return None
        return max(self.steps_total - self.steps_done, 0)


def read_run(folder: Path) -> RunSettings | None:
    """The settings of the run that left its files in `folder`, or None if there are none.

    training_args.bin is a pickle of transformers' own classes: it is opened only if something is still missing and
    transformers is installed, with those classes allowed and no others; else it is left, and a note says so.

    Args:
        folder: of a checkpoint; or one file, which is read itself where it may hold an optimizer (.pt, .pth, .ckpt),
            and stands for the Trainer files beside it otherwise.

    Raises:
        SourceError: a file is damaged, wants to run code, or holds something else than it should.
        UsageError: the groups have several different decays, so that none is the base.
    """
    found = _Found()
    if folder.is_file() and _may_be_checkpoint(folder):
        _read_checkpoint(folder, found)
    elif folder.is_file():
        _read_trainer(folder.parent, found)
    elif folder.is_dir():
        _read_trainer(folder, found)
        checkpoint = None if found else _only_checkpoint(folder)
        if checkpoint is not None:
            _read_checkpoint(checkpoint, found)
    return RunSettings(**found.values, origin=found.origin, notes=tuple(found.notes)) if found else None


class _Found:
    """Values as they are found: the first file to say one is believed."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.origin: dict[str, str] = {}
        self.notes: list[str] = []

    def __bool__(self) -> bool:
        return bool(self.values or self.notes)

    def say(self, name: str, value: float | None, file: Path) -> None:
        if value is not None and name not in self.values:
            self.values[name] = value
            self.origin[name] = file.name


def _read_trainer(folder: Path, found: _Found) -> None:
    for optimizer in _present(folder, _OPTIMIZER):
        groups = list(_groups(_load(optimizer)))
        if not groups:
            raise SourceError(f"'{optimizer}' holds no parameter groups: it is not what an optimizer saves")
        _read_groups(groups, optimizer, found)
    for scheduler in _present(folder, _SCHEDULER):
        if "peak_lr" not in found.values:
            rates = _mapping(_load(scheduler), scheduler).get("base_lrs")
            found.say("peak_lr", _largest(_numbers(rates, scheduler)), scheduler)
    for state in _present(folder, (_STATE,)):
        _read_state(state, found)
    for arguments in _present(folder, (_ARGUMENTS,)):
        if "weight_decay" not in found.values or "peak_lr" not in found.values:
            _read_arguments(arguments, found)


def _read_state(path: Path, found: _Found) -> None:
    try:
        state = _mapping(json.loads(read_whole(path)), path)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"'{path}' is not a readable JSON file ({error}): copy the checkpoint again") from error
    except OSError as error:
        raise SourceError(f"'{path}' cannot be read: {error.strerror}") from error
    found.say("steps_done", _count(state, "global_step", path), path)
    found.say("steps_total", _count(state, "max_steps", path) or None, path)
    history = state.get("log_history")
    logged = [entry for entry in history if isinstance(entry, Mapping)] if isinstance(history, list) else []
    rates = [entry["learning_rate"] for entry in logged if "learning_rate" in entry]
    if rates:
        found.say("lr", _number(rates[-1], path), path)


def _read_arguments(path: Path, found: _Found) -> None:
    if importlib.util.find_spec("transformers") is None:
        found.notes.append(f"{path.name} was left unread: opening it takes transformers, which is not installed.")
        return
    from specdiag.checkpoint.torch_load import ForeignPickleError

    try:
        arguments = _load(path, tuple(_argument_types()))
    except ForeignPickleError:
        found.notes.append(f"{path.name} was left unread: it holds more than transformers' own settings.")
        return
    found.say("weight_decay", _optional(getattr(arguments, "weight_decay", None), path), path)
    found.say("peak_lr", _optional(getattr(arguments, "learning_rate", None), path), path)


def _argument_types() -> Iterator[type]:
    for module, names in _ARGUMENT_TYPES.items():
        try:
            loaded = importlib.import_module(module)
        except ImportError:
            continue
        yield from (getattr(loaded, name) for name in names if hasattr(loaded, name))


def _only_checkpoint(folder: Path) -> Path | None:
    """nanoGPT's ckpt.pt, or the one torch file of a folder whose weights are not elsewhere."""
    known = folder / "ckpt.pt"
    if known.is_file():
        return known
    files = [path for path in folder.iterdir() if _may_be_checkpoint(path) and path.is_file()]
    return files[0] if len(files) == 1 and not any(folder.glob("*.safetensors")) else None


def _read_checkpoint(path: Path, found: _Found) -> None:
    content = _load(path)
    if not isinstance(content, Mapping):
        return
    content = cast("Mapping[Any, Any]", content)
    groups = [group for name in _HOLDERS if name in content for group in _groups(content[name])]
    groups = groups or list(_groups(content))
    if not groups:
        return
    _read_groups(groups, path, found)
    done = next((content[name] for name in _STEPS if name in content), None)
    found.say("steps_done", _whole(done), path)
    config = content.get("config")
    if "iter_num" in content and isinstance(config, Mapping):  # nanoGPT keeps its settings here
        config = cast("Mapping[Any, Any]", config)
        found.say("steps_total", _whole(config.get("max_iters")), path)
        found.say("peak_lr", _optional(config.get("learning_rate"), path), path)


def _groups(content: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The parameter groups of one saved optimizer, or of all in a list or dictionary of them."""
    if isinstance(content, Mapping):
        content = cast("Mapping[Any, Any]", content)
        groups = content.get("param_groups")
        if isinstance(groups, list):
            yield from (cast("Mapping[str, Any]", group) for group in groups if isinstance(group, Mapping))
        elif depth == 0:
            for inner in content.values():
                yield from _groups(inner, 1)
    elif isinstance(content, (list, tuple)) and depth == 0:
        for inner in cast("Sequence[Any]", content):
            yield from _groups(inner, 1)


def _read_groups(groups: Sequence[Mapping[str, Any]], path: Path, found: _Found) -> None:
    sizes: dict[float, int] = {}
    for group in groups:
        if "weight_decay" in group:
            decay = _number(group["weight_decay"], path)
            tensors = group.get("params")
            sizes[decay] = sizes.get(decay, 0) + (len(tensors) if isinstance(tensors, list) else 0)
    decays = sorted(decay for decay in sizes if decay)
    if len(decays) > 1:
        values = listed((f"{decay:g} ({sizes[decay]} tensors)" for decay in decays), 8)
        raise UsageError(f"'{path}' has groups of different weight decay: {values}; give the base as weight_decay=")
    if sizes:
        found.say("weight_decay", decays[0] if decays else 0.0, path)
        found.say("no_decay", 0.0 in sizes, path)
    deciding = [group for group in groups if group.get("weight_decay")] or list(groups)
    kinds = [group.get("decoupled_weight_decay") for group in deciding]
    if all(kind is True for kind in kinds) or all(kind is False for kind in kinds):
        found.say("decoupled", kinds[0], path)
    rates = {_number(group["lr"], path) for group in deciding if "lr" in group}
    if len(rates) > 1:
        found.notes.append(f"{path.name} has groups of lr {min(rates):g} to {max(rates):g}: the largest is taken.")
    found.say("lr", _largest(rates), path)
    found.say("peak_lr", _largest({_number(g["initial_lr"], path) for g in deciding if "initial_lr" in g}), path)


def _load(path: Path, allowed: Sequence[type] | None = None) -> Any:
    from specdiag.checkpoint.torch_load import INERT, load_torch

    return load_torch(path, str(path), INERT if allowed is None else allowed)


def _present(folder: Path, names: Sequence[str]) -> list[Path]:
    """The first of these files that is there, as a list of one or none."""
    return [folder / name for name in names if (folder / name).is_file()][:1]


def _mapping(content: Any, path: Path) -> Mapping[Any, Any]:
    if not isinstance(content, Mapping):
        raise SourceError(f"'{path}' holds a {type(content).__name__} where a dictionary belongs: copy it again")
    return cast("Mapping[Any, Any]", content)


def _number(value: Any, path: Path) -> float:
    item = getattr(value, "item", None)  # torch keeps a capturable optimizer's lr in a tensor of one element
    if item is not None and getattr(value, "numel", lambda: 1)() == 1:
        value = item()
    try:
        if not isinstance(value, bool) and isinstance(value, (int, float)) and 0 <= float(value) < math.inf:
            return float(value)
    except OverflowError:  # an integer of 400 digits
        pass
    raise SourceError(f"'{path}' has {_shown(value)} for a decay or an lr: give weight_decay= and lr= instead")


def _optional(value: Any, path: Path) -> float | None:
    return None if value is None else _number(value, path)


def _numbers(values: Any, path: Path) -> list[float]:
    return [_number(value, path) for value in values] if isinstance(values, (list, tuple)) else []


def _largest(values: set[float] | list[float]) -> float | None:
    return max(values, default=None)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_STEPS else None


def _shown(value: Any) -> str:
    """The value in few characters, whatever it is."""
    try:
        return f"{value!r:.40}"
    except ValueError:  # Python writes no integer of 5,000 digits
        return "a huge number"


def _count(content: Mapping[Any, Any], name: str, path: Path) -> int | None:
    value = content.get(name)
    if value is not None and value != -1 and _whole(value) is None:  # -1: not set
        raise SourceError(f"'{path}' has {_shown(value)} for {name}, not a number of steps: give steps_left= instead")
    return _whole(value)


def _may_be_checkpoint(path: Path) -> bool:
    """Tell by its name whether a file may hold weights and optimizer together, as torch saves them."""
    from specdiag.checkpoint.formats import TORCH_SUFFIXES  # readers need numpy

    return path.suffix in TORCH_SUFFIXES and path.suffix != ".bin"
