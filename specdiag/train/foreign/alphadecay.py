"""Reads checkpoint folders of AlphaDecay's code (github.com/hed-ucas/AlphaDecay), which is based on GaLore's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from specdiag.errors import SourceError
from specdiag.files import read_whole
from specdiag.train.foreign.building import Loaded, build, dtype_of, load
from specdiag.train.foreign.foreign import Foreign
from specdiag.train.foreign.layouts import assign
from specdiag.train.foreign.load import saved_optimizer
from specdiag.train.foreign.moments import decay_differences, moments_of
from specdiag.train.foreign.opening import SavedDict, open_dictionary
from specdiag.train.foreign.reported_settings import ReportedSettings, plain

KIND = "AlphaDecay checkpoint"
STATE = "training_state.json"
OPTIMIZER = "optimizer.pt"
_ALPHADECAY = {"s1": "wd_min_ratio", "s2": "wd_max_ratio", "every": "unbalancedWD_every"}
_WEIGHTS = ("pytorch_model.bin", "model.safetensors")


def is_alphadecay(folder: Path) -> bool:
    """True if AlphaDecay's code wrote this folder."""
    return (folder / STATE).is_file() and (folder / OPTIMIZER).is_file()


def read_alphadecay(folder: Path, config: str | Path | None, layout: str | None) -> Foreign:
    """Read a checkpoint folder of AlphaDecay's code.

    Args:
        folder: folder of the checkpoint.
        config: folder, config.json or hub id of the model; None for the folder's own.
        layout: required layout of the optimizer; None to find it.

    Raises:
        UsageError: the optimizer cannot be continued, or the model or the layout must be named.
        SourceError: a file is missing or damaged, or the files do not fit together.
    """
    content = open_dictionary(folder / OPTIMIZER)
    state = _state(folder / STATE)
    saved = saved_optimizer(content.get("optimizer"), OPTIMIZER)
    run = plain(content.get("config"))
    loaded, orders = _model(folder, config)
    assigned, _, note = assign(saved, loaded.model, orders, layout)
    step = saved.step
    origin = f"config in {OPTIMIZER}"
    reported = ReportedSettings()
    reported.rates(saved, OPTIMIZER)
    reported.numbers({**run, "gradient_accumulation": None}, origin)
    _add_settings(reported, run, origin)
    kind = saved.kind or ("adam" if str(run.get("optimizer", "")).lower() == "adam" else "adamw")
    sentences = [
        note,
        *loaded.notes,
        *_decays(saved.decays, run),
        *decay_differences(saved, assigned, loaded.model),
        *_position(state, step, content.get("scheduler")),
        "Its data was C4, streamed and shuffled: where it stood in it is not known here.",
    ]
    return Foreign(
        kind=KIND,
        model=loaded.model,
        moments=moments_of(saved, assigned),
        optimizer=kind,
        step=step,
        settings=reported.settings,
        block_size=reported.block_size,
        steps_total=reported.steps_total,
        notes=sentences,
    )


def _model(folder: Path, config: str | Path | None) -> tuple[Loaded, list[dict[str, Sequence[str]]]]:
    """Load the model, and list the orders that its parameters may have had."""
    path = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if path is None:
        raise SourceError(f"{folder} has no {' and no '.join(_WEIGHTS)}")
    ordered = path.suffix == ".bin"
    try:
        weights: Mapping[str, torch.Tensor] = open_dictionary(path) if ordered else load_file(path)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise SourceError(f"{path} cannot be read ({error}): copy it again") from error
    loaded = load(build(config, folder, dtype_of(weights), str(folder)), weights, path.name)
    if ordered:
        return loaded, [{"": loaded.order}]
    names = list(dict.fromkeys(name for name, _ in loaded.model.named_parameters()))
    other = _gate_down_up(names)
    return loaded, [{"": names} if other == names else {"": names, ":gate-down-up": other}]


def _gate_down_up(names: Sequence[str]) -> list[str]:
    """Return names in the order of the released code's own Llama: gate, down, up instead of gate, up, down."""
    other = {"up_proj": "down_proj", "down_proj": "up_proj"}
    return [".".join(other.get(segment, segment) for segment in name.split(".")) for name in names]


def _state(path: Path) -> Mapping[str, Any]:
    try:
        state = json.loads(read_whole(path))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read ({error}): copy the checkpoint again") from error
    if not isinstance(state, dict) or type(state.get("update_step")) is not int:
        raise SourceError(f"{path} names no update_step: copy the checkpoint again")
    return cast("dict[str, Any]", state)


def _add_settings(reported: ReportedSettings, run: SavedDict, origin: str) -> None:
    decay, batch, total = run.get("weight_decay"), run.get("batch_size"), run.get("total_batch_size")
    reported.add(origin, learning_rate=run.get("max_lr"), weight_decay=decay)
    if isinstance(batch, int) and isinstance(total, int) and batch > 0 and total % batch == 0:
        reported.add(origin, gradient_accumulation_steps=total // batch)  # total_batch_size is that of all processes
    if run.get("activation_checkpointing"):
        reported.add(origin, activation_checkpointing=True)
    kind, ratio, warmup = run.get("scheduler"), run.get("min_lr_ratio"), run.get("warmup_steps")
    if kind == "linear":
        reported.add(origin, lr_scheduler_type="linear", warmup_steps=warmup)
    elif kind == "cosine" and ratio is not None:
        reported.add(
            origin,
            lr_scheduler_type="cosine_with_min_lr",
            lr_scheduler_kwargs={"min_lr_rate": float(ratio)},
            warmup_steps=warmup,
        )
    elif kind is not None:
        reported.settings.notes.append(f"The schedule {kind} of the run is not taken over.")


def _decays(decays: set[float], run: SavedDict) -> list[str]:
    base = run.get("weight_decay")
    if not decays or not isinstance(base, float) or base <= 0 or not run.get("use_modulewise_wd"):
        return []
    options = ", ".join(f"{name}={run.get(key)}" for name, key in _ALPHADECAY.items())
    return [
        f"Its decays were {min(decays) / base:.3g} to {max(decays) / base:.3g} of {base:g}, the base: go on like that "
        f"with decay=alphadecay, {options}."
    ]


def _position(state: Mapping[str, Any], step: int, scheduler: Any) -> list[str]:
    last = plain(scheduler).get("last_epoch")
    if last is not None and last != step:
        raise SourceError(f"{OPTIMIZER} has an optimizer at step {step} and a scheduler at step {last}: copy it again")
    updates = int(state["update_step"])
    if updates == step:
        return []
    if updates < step:
        raise SourceError(f"{OPTIMIZER} is at step {step} and {STATE} at {updates}: they are of two checkpoints")
    return [
        f"{STATE} counts {updates} updates and the optimizer {step}, since `--continue_from` began it and the schedule "
        f"anew: {step} counts."
    ]
