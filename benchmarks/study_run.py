"""Runs of benchmarks/study.py: each trains an arm, measures its weights, and continues where it was stopped."""

from __future__ import annotations

import math
import sysconfig
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from study_arms import RULES, Stepped
from study_design import ARMS, Size, size_of
from study_order import Cell
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

import specdiag
from specdiag.decay.schedules import Schedule, cosine, linear
from specdiag.train.data.blocks import Blocks, all_blocks
from specdiag.train.data.tokenizers import open_tokenizer
from specdiag.train.data.tokens import load_data

WARMUP = 0.05
BETAS, CLIP = (0.9, 0.95), 1.0
LOOKS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Shares of the run after which the held-out loss and the spectra are measured."""
_SAVED_EVERY = 120.0
"""Seconds between two saved states."""


class Stopped(Exception):
    """Time is up. The state is saved."""


@dataclass(frozen=True)
class Task:
    """Data and length of the runs of a size.

    Attributes:
        digest: identity of the data and the blocks.
        n_parameters: weights, embedding and head included.
        compiled: True to train with `torch.compile`.
    """

    name: str
    size: Size
    train: Blocks
    held_out: Blocks
    digest: str
    steps: int
    n_parameters: int
    device: torch.device
    compiled: bool = False


def prepare(name: str, data: tuple[str, ...], folder: Path, device: torch.device, *, compiled: bool = False) -> Task:
    """Load the data of a size, and count the steps.

    Args:
        name: of a size.
        data: paths or datasets of the hub instead of the size's own.
        folder: keeps tokens.
        device: for training.
        compiled: True to train with `torch.compile`.
    """
    size = size_of(name)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = open_tokenizer(size.tokenizer)
    loaded = load_data(
        data or size.data or (str(_library(folder)),), tokenizer=tokenizer,
        vocabulary=int(str(size.config["vocab_size"])),
        block_size=size.block, seed=0, cache=folder, max_tokens=size.max_tokens or None,
    )  # fmt: skip
    assert isinstance(loaded.train, Blocks)
    assert isinstance(loaded.held_out, Blocks)
    return replace(
        outline(name, device),
        train=loaded.train,
        held_out=loaded.held_out,
        digest=loaded.fingerprint.digest,
        compiled=compiled,
    )


def outline(name: str, device: torch.device) -> Task:
    """Count weights and steps of a size. Its data are as many random blocks as one forward pass takes.

    Args:
        name: of a size.
        device: for training.
    """
    size = size_of(name)
    n = sum(p.numel() for p in _model(size, torch.device("meta")).parameters())
    steps = math.ceil(size.tokens_per_parameter * n / (size.batch * size.block))
    tokens = np.random.default_rng(0).integers(int(str(size.config["vocab_size"])), size=size.micro * size.block)
    blocks = all_blocks(tokens.astype(np.uint32), size.block, "random tokens")
    return Task(name, size, blocks, blocks, "", steps, n, device)


def _library(folder: Path) -> Path:
    """Write the modules of Python's standard library, tests aside, into one file of text."""
    path = folder / "library.txt"
    if not path.exists():
        root = Path(sysconfig.get_path("stdlib"))
        left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
        modules = sorted(p for p in root.rglob("*.py") if not left_out.intersection(p.relative_to(root).parts))
        unfinished = path.with_suffix(".part")
        unfinished.write_text("\n".join(p.read_text("utf-8", errors="replace") for p in modules), "utf-8")
        unfinished.replace(path)
    return path


def _model(size: Size, device: torch.device) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**size.config)
    with device:
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


class Training:
    """A model and all that trains it, by the settings of a cell.

    Attributes:
        base: base weight decay.
        rules: what the arm adds.
        done: steps taken.
    """

    def __init__(self, cell: Cell, task: Task) -> None:
        torch.manual_seed(cell.seed)
        self._task, self._seed = task, cell.seed
        self.model = _model(task.size, torch.device("cpu")).to(task.device)
        self._trained = torch.compile(self.model) if task.compiled else self.model
        shape = _shape(task.steps, linear_to_zero=ARMS[cell.arm].linear)
        self.base = cell.total / (cell.lr * sum(shape(step) for step in range(1, task.steps + 1)))
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        self._optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": self.base}, {"params": others, "weight_decay": 0.0}],
            lr=cell.lr, betas=BETAS,
        )  # fmt: skip
        self._scheduler = LambdaLR(self._optimizer, lambda done: shape(done + 1))
        self.rules: list[Stepped] = RULES[ARMS[cell.arm].rule](self.model, self._optimizer, task.steps)
        self.done = 0
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def step(self) -> float:
        """Take one step.

        Returns:
            Training loss, nats a token.
        """
        size, losses = self._task.size, list[float]()
        blocks = self._batch()
        for part in blocks.split(size.micro):
            with torch.autocast(part.device.type, torch.bfloat16, enabled=part.device.type == "cuda"):
                loss = self._trained(input_ids=part, labels=part).loss
            (loss * len(part) / len(blocks)).backward()
            losses.append(float(loss.detach()) * len(part) / len(blocks))
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for rule in self.rules:
            rule.step(self.done)
        self._optimizer.step()
        self._scheduler.step()
        self._optimizer.zero_grad()
        self.done += 1
        return sum(losses)

    def held_out_loss(self) -> float:
        """Mean over the predicted tokens of all held-out blocks, in nats."""
        blocks, size = self._task.held_out, self._task.size
        losses: list[float] = []
        with torch.no_grad():
            for start in range(0, len(blocks), size.micro):
                batch = _stacked(blocks, range(start, min(start + size.micro, len(blocks))), self._task.device)
                losses += [float(self.model(input_ids=batch, labels=batch).loss)] * len(batch)
        return fmean(losses)

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on."""
        return {
            "model": self.model.state_dict(), "optimizer": self._optimizer.state_dict(), "done": self.done,
            "scheduler": self._scheduler.state_dict(), "rules": [rule.state_dict() for rule in self.rules],
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        for rule, saved in zip(self.rules, state["rules"], strict=True):
            rule.load_state_dict(saved)
        self.done = state["done"]

    def _batch(self) -> torch.Tensor:
        """Return the blocks of the next step: a new order in each pass, the same for all arms of a seed."""
        size, train = self._task.size, self._task.train
        per_epoch = len(train) // size.batch
        epoch, index = divmod(self.done, per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(1000 * self._seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(train), generator=generator)
        chosen = self._order[index * size.batch : (index + 1) * size.batch].tolist()
        return _stacked(train, chosen, self._task.device)


def _stacked(blocks: Blocks, indices: Iterable[int], device: torch.device) -> torch.Tensor:
    return torch.stack([blocks[index]["input_ids"] for index in indices]).to(device)


def _shape(steps: int, *, linear_to_zero: bool) -> Schedule:
    warmup = round(WARMUP * steps)
    return linear(1.0, steps, warmup) if linear_to_zero else cosine(1.0, steps, warmup, 0.1)


def run(cell: Cell, task: Task, state_file: Path, is_over: Callable[[], bool]) -> dict[str, Any]:
    """Train one cell, from its saved state if there is one.

    Args:
        cell: what is trained.
        task: data and length.
        state_file: where the state of an unfinished run is kept.
        is_over: returns True if the run must stop.

    Returns:
        `loss` at the end, None if it is not finite; `looks` by step; `matrices` at the end.

    Raises:
        Stopped: `is_over` returned True.
    """
    training = Training(cell, task)
    looks: dict[str, Any] = {}
    seconds = 0.0
    if state_file.exists():
        saved = torch.load(state_file, map_location=task.device, weights_only=True)
        training.load(saved["training"])
        looks, seconds = saved["looks"], saved["seconds"]
    at = {round(share * task.steps) for share in LOOKS}
    started = saved_at = time.monotonic()
    finite = True
    while finite:
        if training.done in at and str(training.done) not in looks:
            looks[str(training.done)] = look(training)
        if training.done == task.steps:
            break
        finite = math.isfinite(training.step())
        now = time.monotonic()
        if now - saved_at > _SAVED_EVERY or is_over():
            elapsed = seconds + now - started
            _save(state_file, {"training": training.state(), "looks": looks, "seconds": elapsed})
            saved_at = now
            if is_over():
                raise Stopped
    loss = looks[str(task.steps)]["loss"] if finite else None
    found = {
        "loss": loss if loss is not None and math.isfinite(loss) else None, "steps": task.steps, "base": training.base,
        "seconds": round(seconds + time.monotonic() - started, 1), "looks": looks, "matrices": _matrices(training),
    }  # fmt: skip
    state_file.unlink(missing_ok=True)
    return found


def look(training: Training) -> dict[str, Any]:
    """Measure the held-out loss, and by role the mean alpha, square_alpha and root mean square of the weights."""
    roles: dict[str, list[list[float]]] = defaultdict(list)
    for _, role, *values in _rows(training):
        roles[role].append(values)
    means = {role: [_rounded(fmean(column)) for column in zip(*rows, strict=True)] for role, rows in roles.items()}
    return {"loss": training.held_out_loss(), "roles": means}


def _matrices(training: Training) -> dict[str, list[float]]:
    """Return alpha, square_alpha, root mean square and last ratio of each matrix."""
    ratios: dict[str, float] = {}
    for rule in training.rules:
        ratios |= getattr(rule, "ratios", {})
    return {name: [*map(_rounded, values), _rounded(ratios.get(name, 1.0))] for name, _, *values in _rows(training)}


def _rows(training: Training) -> list[tuple[str, str, float, float, float]]:
    """Return name, role, alpha, square_alpha and root mean square of each matrix that has exponents."""
    return [
        (r.name, r.role, r.alpha, r.square_alpha, (r.frobenius_norm or 0.0) / math.sqrt(r.rows * r.cols))
        for r in specdiag.analyze(training.model, jobs=1)
        if r.alpha is not None and r.square_alpha is not None
    ]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _save(path: Path, state: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".part")
    torch.save(state, unfinished)
    unfinished.replace(path)
