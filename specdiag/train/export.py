"""Writes a checkpoint of a run for other programs: nanoGPT's ckpt.pt, or its weights in one safetensors file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from specdiag.errors import ComputationError, MissingExtraError, SourceError, UsageError
from specdiag.files import Table
from specdiag.live.parameters import live_parameters, untied
from specdiag.trajectories.metric_log import LOG_NAME, read_log

try:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file
    from torch import nn

    from specdiag.train.checkpoints.finite import check_state
    from specdiag.train.checkpoints.inspect import (
        OPTIMIZER,
        check_weights,
        checkpoints_of,
        damage,
        find_complete,
        has_weights,
        read_state,
    )
    from specdiag.train.checkpoints.manifest import sync
    from specdiag.train.checkpoints.optimizer_state import Moments, check_optimizer, read_optimizer
    from specdiag.train.foreign.layouts import trainer_decayed
    from specdiag.train.foreign.load import MOMENTS
    from specdiag.train.foreign.nanogpt import is_nanogpt
    from specdiag.train.foreign.opening import open_dictionary
    from specdiag.train.foreign.reported_settings import plain
    from specdiag.train.foreign.write_nanogpt import UNKNOWN_LOSS, Progress, nanogpt_content, network_of
    from specdiag.train.methods import optimizer_maker
    from specdiag.train.models.building import read_config, trained_model
    from specdiag.train.runs.config import RunConfig, load_config
    from specdiag.train.runs.import_state import COUPLED
    from specdiag.train.runs.trainer_arguments import read_arguments
except ImportError as error:
    raise MissingExtraError(
        "training needs transformers and accelerate: pip install transformers accelerate"
    ) from error

_SUFFIXES = (".pt", ".safetensors")
_VALIDATION = "val.bin"


def export(source: Path, out: Path) -> list[str]:
    """Write the newest complete checkpoint of a run, or a given one. The source is not written to.

    Args:
        source: a run, or one of its checkpoints.
        out: a new file: .pt for nanoGPT's ckpt.pt with its optimizer, .safetensors for the weights alone, under the
            names that transformers has for them.

    Returns:
        Sentences on what was written, and on what the file cannot hold.

    Raises:
        UsageError: the file exists or has another ending, or nanoGPT has no such network or optimizer.
        SourceError: there is no complete checkpoint, or its parts do not fit.
        ComputationError: the file cannot be written.
    """
    if out.suffix not in _SUFFIXES:
        raise UsageError(f"{out} ends in neither {' nor '.join(_SUFFIXES)}: name nanoGPT's ckpt.pt or a .safetensors")
    if out.exists():
        raise UsageError(f"{out} exists: name a new file")
    if not out.parent.is_dir():
        raise UsageError(f"there is no folder {out.parent}: make it, or name another")
    checkpoint, notes = _newest(source)
    check_weights(checkpoint)
    if out.suffix == ".pt":
        content, more = _nanogpt(checkpoint)
        _write(out, lambda path: torch.save(content, path))
        return [*notes, *more]
    tensors = _tensors(checkpoint)
    _write(out, lambda path: save_file(tensors, path, {"format": "pt"}))
    return [*notes, f"{len(tensors)} tensors of {checkpoint}, as they are stored there."]


def _newest(source: Path) -> tuple[Path, list[str]]:
    if not checkpoints_of(source):
        if not has_weights(source):
            raise SourceError(f"'{source}' holds no checkpoint-N and no weights: name a run or a checkpoint")
        why = damage(source) if (source / OPTIMIZER).exists() else None
        if why is not None:
            raise SourceError(f"'{source}' is incomplete or damaged: {why}; name another checkpoint")
        return source, []
    checkpoint, passed_over = find_complete(source, why_not=damage)
    if checkpoint is None:
        listed = "; ".join(f"{path.name}: {why}" for path, why in passed_over)
        raise SourceError(f"'{source}' has no complete checkpoint ({listed})")
    return checkpoint, [f"{path.name} is incomplete or damaged ({why}) and passed over." for path, why in passed_over]


def _tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Read all tensors of the weights, of which there may be several files."""
    files = sorted(checkpoint.glob("model*.safetensors"))
    if not files:
        raise UsageError(f"{checkpoint} has no weights as safetensors: open it with transformers and save it anew")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _nanogpt(checkpoint: Path) -> tuple[Table, list[str]]:
    if not (checkpoint / OPTIMIZER).exists():
        raise UsageError(f"{checkpoint} has no optimizer, and nanoGPT's ckpt.pt has one: name a .safetensors")
    own = load_config(checkpoint.parent)
    settings = read_arguments(checkpoint).values if own is None else own.recipe.settings
    method = str(settings.get("optim", "")) if own is None else own.recipe.optimizer or str(settings.get("optim", ""))
    if not method.startswith("adamw") or settings.get("optim") == COUPLED:
        raise UsageError(f"nanoGPT's optimizer is AdamW, and that of {checkpoint} is {method}: name a .safetensors")
    model: Any = trained_model(checkpoint, read_config(checkpoint), "causal-lm", stored_type=True)
    network = network_of(model)
    lr, moments, decayed = _moments(checkpoint, model, own)
    state = read_state(checkpoint)
    config, notes = _source_config(own)
    progress = Progress(
        step=int(state["global_step"]), lr=lr, settings=settings, moments=moments, config=config,
        steps_total=int(state["max_steps"]) if own is None else own.recipe.steps_total,
        best_loss=_best_loss(checkpoint, own, int(state["global_step"])),
    )  # fmt: skip
    content = nanogpt_content(network, progress)
    for names, words in ((network.decayed - decayed, "does"), (decayed - network.decayed, "does not")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            verb = "did not decay" if words == "does" else "decayed"
            notes.append(f"The run {verb} {min(names)}{more}, which nanoGPT's optimizer {words}.")
    if own is not None and own.recipe.decay != "uniform":
        notes.append(
            f"The run's decay is '{own.recipe.decay}', and nanoGPT's optimizer has one for all matrices, "
            f"{settings['weight_decay']:g}: add specdiag.optim.AlphaDecay or DecayPlan.apply to train.py."
        )
    if progress.best_loss is None:
        notes.append(f"best_val_loss is {UNKNOWN_LOSS:g}, as at the start: the run was not evaluated on {_VALIDATION}.")
    if getattr(model.config, "activation", getattr(model.config, "activation_function", "")) in (
        "gelu_tanh",
        "gelu_new",
    ):
        notes.append("The network has the GELU by tanh, and the optimizer the order, of nanoGPT before June 2023.")
    return content, [f"{checkpoint} at step {progress.step}, for nanoGPT's init_from='resume'.", *notes]


def _moments(checkpoint: Path, model: nn.Module, own: RunConfig | None) -> tuple[float, Moments, set[str]]:
    """Return the lr of the next step, the moments by parameter name, and the names of what decays."""
    make = None if own is None else optimizer_maker(own.recipe)
    optimizer = _trainers_optimizer(model) if make is None else make(model)
    path = checkpoint / OPTIMIZER
    _, moments = check_optimizer(path, optimizer, model)
    check_state(moments, str(path))
    unknown = {key for own in moments.values() for key in own} ^ {"step", *MOMENTS}
    if unknown:
        raise UsageError(f"{path} is not the state of AdamW ({', '.join(sorted(unknown))}): name a .safetensors")
    lr: Any = read_optimizer(path)[0][0]["lr"]
    names: dict[torch.Tensor, str] = {p: name for name, p in untied(live_parameters(model)).items()}
    decayed = {names[p] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    return float(lr), moments, decayed


def _trainers_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Make an optimizer with the groups of a Trainer's."""
    decayed = trainer_decayed(model)
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in untied(live_parameters(model)).items():
        groups[name in decayed].append(parameter)
    return torch.optim.AdamW(
        [{"params": groups[True], "weight_decay": 0.1}, {"params": groups[False], "weight_decay": 0.0}]
    )


def _best_loss(checkpoint: Path, own: RunConfig | None, step: int) -> float | None:
    """Return the smallest loss on nanoGPT's val.bin up to a step; None if there is none."""
    if own is None or [file.name for file in own.fingerprint.held_out] != [_VALIDATION]:
        return None
    log = read_log(checkpoint.parent / LOG_NAME)
    losses = [e.value for e in log if e.metric == "eval_loss" and e.value is not None and e.step <= step]
    return min(losses, default=None)


def _source_config(own: RunConfig | None) -> tuple[Mapping[str, Any], list[str]]:
    """Return the config of the ckpt.pt from which a run started, which names its dataset."""
    if own is None or not own.source:
        return {}, []
    path = Path(own.source)
    path = path / "ckpt.pt" if path.is_dir() else path
    if not path.is_file() or path.suffix != ".pt":
        return {}, [f"config holds what this run knows: {own.source} is no ckpt.pt that could tell the rest."]
    content = open_dictionary(path)
    return (plain(content.get("config")) if is_nanogpt(content) else {}), []


def _write(out: Path, save: Callable[[Path], None]) -> None:
    """Write a file under another name, sync it, and rename it."""
    handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    os.close(handle)
    unfinished = Path(temporary)
    try:
        save(unfinished)
        sync(unfinished)
        unfinished.replace(out)
        sync(out.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises RuntimeError on a full disk
        raise ComputationError(f"{out} cannot be written ({str(error).partition(chr(10))[0]}): free space") from error
    finally:
        unfinished.unlink(missing_ok=True)
