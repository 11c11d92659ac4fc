"""Log of weight norms, steps and their angles while a model trains, to compare with what theory predicts."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from specdiag.dynamics.norm_log import write_modules
from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.live.attaching import decays_in_force, rates_in_force
from specdiag.live.matrices import LiveMatrix, live_matrices
from specdiag.live.parameters import live_parameters
from specdiag.optim.decay_semantics import torch_optimizer
from specdiag.optim.norms.block_figures import BlockFigures
from specdiag.optim.norms.norm_entries import Snapshot, describe, layer_means, snapshot, step_rows, weight_rows
from specdiag.optim.norms.power_iteration import PowerIteration
from specdiag.optim.norms.step_parts import inner_products
from specdiag.optim.norms.watched_modules import watched_matrices
from specdiag.optim.norms.whole_weights import Part, WholeWeights
from specdiag.records import ROLES
from specdiag.system.folder_lock import FolderLock
from specdiag.text import checks
from specdiag.trajectories.alerts import Alert
from specdiag.trajectories.function_alerts import Last, function_alerts, latest_values
from specdiag.trajectories.metric_log import LOG_NAME, NORMS_NAME, LogEntry, append_log

_log = logging.getLogger("specdiag")


class NormWatch:
    """Logs, every so many steps, each matrix's norms, its update without the decay, and the direction of that update.

    Where the wiring of the model is known, bounds of attention scores, stable ranks of QK and the largest channel of
    the residual stream are logged too, and a warning says where one goes off course.

    The run does not change. A logged step costs a copy of the watched weights, other steps nothing. Where ranks train
    together, the first one measures and writes. Where Parameters are shards (FSDP2, tensor parallelism), each is put
    together at one rank, which measures it: every rank makes each call, and gets all entries and alerts.

    Example:
        >>> watch = NormWatch(model, optimizer, out="runs/mine")
        >>> for step, batch in enumerate(loader):
        ...     model(**batch).loss.backward()
        ...     watch.step(step)
        ...     optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        every: int = 50,
        out: str | os.PathLike[str] | None = None,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        roles: str | Sequence[str] = (),
        alerts: bool = True,
    ) -> None:
        """Attach to live optimizers.

        Args:
            model: names the Parameters; wrappers (DDP, torch.compile) are looked through.
            optimizer: one or several.
            every: steps from one logged step to the next.
            out: directory of the run, where `specdiag_norms/` is made; None keeps the latest values in memory only.
            include: globs on names; only these matrices.
            exclude: globs on names; not these matrices.
            roles: only matrices of these roles.
            alerts: raise alerts, and watch scores, QK and channels too, of heads and MLPs whose matrices are all among
                those.

        Raises:
            UsageError: an option makes no sense, the optimizer or the model cannot be watched, or `out` cannot be made.
            RankFailed: Parameters are shards, and `out` cannot be made at the first rank.
        """
        if checks.whole("every", every) < 1:
            raise UsageError(f"every={every} must be a number of steps of at least 1")
        several = optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]
        self._optimizers = [torch_optimizer(each) for each in several]
        out = None if out is None else checks.path("out", out)
        include, exclude, roles = (
            checks.texts("include", include),
            checks.texts("exclude", exclude),
            checks.each_of("roles", roles, ROLES),
        )
        groups = {p: (o, g) for o in self._optimizers for g in o.param_groups for p in g["params"]}
        self._matrices = watched_matrices(model, set(groups), include=include, exclude=exclude, roles=roles)
        self._every = every
        self._figures: BlockFigures | None = None
        self._raises = alerts
        if checks.flag("alerts", alerts):
            self._figures = BlockFigures(model, {matrix.key for matrix in self._matrices})
        self.notes: tuple[str, ...] = () if self._figures is None else self._figures.notes
        """Sentences on blocks of which scores, QK and channels are not watched, each with its reason."""
        self._last_values: dict[tuple[str, str], Last] = {}
        matrices = {m.parameter for m in live_matrices(model)}
        self._named = live_parameters(model)
        self._vectors = {name: p.detach() for name, p in self._named.items() if p not in matrices}
        self._weights = WholeWeights(self._matrices, () if self._figures is None else self._figures.together())
        self._powers = PowerIteration()
        self._handles: list[RemovableHandle] = []
        self._of_parameter: dict[nn.Parameter, list[LiveMatrix]] = {}
        for matrix in self._matrices:
            self._of_parameter.setdefault(matrix.parameter, []).append(matrix)
        self._copies: dict[nn.Parameter, torch.Tensor] | None = None
        self._before: dict[int, dict[nn.Parameter, Snapshot | None]] = {}
        self._depth: dict[int, int] = {}
        self._pending: set[int] = set()
        self._last_step = -1
        self._step = 0
        self._part = Part()
        self.latest: tuple[LogEntry, ...] = ()
        """Entries of the last logged step."""
        self.alerts: tuple[Alert, ...] = ()
        """Alerts of the last logged step."""
        self._log: Path | None = None
        self._lock: FolderLock | None = None
        with self._weights.agreement():
            if out is not None and self._weights.is_writer:
                folder = Path(out) / NORMS_NAME
                try:
                    folder.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise UsageError(f"cannot make the folder {folder}: {error.strerror}; name another one") from error
                self._lock = FolderLock(folder, "log of norms")
                write_modules(folder, every, [describe(m, *groups[m.parameter]) for m in self._matrices])
                self._log = folder / LOG_NAME

    def step(self, global_step: int | None = None) -> None:
        """Announce an optimizer step. It is logged where `every` divides the number of steps before it.

        Args:
            global_step: optimizer steps done so far, 0 before the first; None counts calls.
        """
        self._last_step = self._last_step + 1 if global_step is None else global_step
        if not self._weights.takes_part:
            return
        self._write()
        self._before, self._depth, self._copies, self._part = {}, {}, None, Part()
        self._step = self._last_step
        if self._step % self._every == 0:
            self.detach()
            for optimizer in self._optimizers:
                self._pending.add(id(optimizer))
                self._handles.append(optimizer.register_step_pre_hook(self._enter))
                # It goes first, for the hooks of a decay rule scale weights and change gradients.
                hooks = optimizer._optimizer_step_pre_hooks  # pyright: ignore[reportPrivateUsage]
                cast("OrderedDict[int, object]", hooks).move_to_end(self._handles[-1].id, last=False)
                self._handles.append(optimizer.register_step_post_hook(self._leave))

    def finish(self, global_step: int | None = None) -> None:
        """Log the norms of the last weights, which no update follows, and remove the hooks.

        Args:
            global_step: optimizer steps done; None for one more than in the last call of `step`.
        """
        if self._weights.takes_part:
            self._write()
            self._step = self._last_step + 1 if global_step is None else global_step
            self._last_step = self._step
            copies = self._look()
            rows: dict[str, list[LogEntry]] = {m.key: [] for m in self._matrices}
            with self._weights.attempt():
                rows |= weight_rows(
                    self._step, [m for m in self._matrices if m.parameter in copies], copies, self._powers
                )
            self._part.entries += rows.values()
            self._write()
            if self._lock is not None:
                self._lock.release()
        self.detach()

    def state_dict(self) -> Table:
        """Return the state of the spectral norms, the values that alerts compare with, and the step count, for JSON."""
        last = [[*key, *value] for key, value in self._last_values.items()]
        return {"steps": self._last_step, "vectors": self._powers.state_dict(), "last_values": last}

    def load_state_dict(self, state: Table) -> None:
        """Continue from a saved state; matrices that are new, or of another shape, start anew."""
        self._last_step = state["steps"]
        self._last_values = {(metric, module): Last(*last) for metric, module, *last in state["last_values"]}
        self._powers.load_state_dict(state["vectors"])
        self._powers.keep({m.key: m.slicer.shape for m in self._matrices})

    def detach(self) -> None:
        """Remove the hooks from the optimizers."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._pending = [], set()
        self._before, self._depth, self._copies = {}, {}, None

    def __enter__(self) -> NormWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._write()
        self.detach()

    def _enter(self, optimizer: Optimizer, *_: object) -> None:
        """Run before the step, and before a `super().step()` within it: torch calls the hooks for each."""
        key = id(optimizer)
        if key in self._depth:
            self._depth[key] += 1
        if key not in self._pending:
            return
        if torch.compiler.is_compiling() or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()):
            raise UsageError("the optimizer's step is compiled or captured in a CUDA graph: it cannot be watched")
        self._pending.remove(key)
        self._depth[key] = 1
        if self._copies is None:
            self._copies = self._look()
        decays, rates = decays_in_force(optimizer), rates_in_force(optimizer)
        groups = {
            p: group
            | {"weight_decay": decays.get(p, group.get("weight_decay", 0.0)), "lr": group["lr"] * rates.get(p, 1.0)}
            for group in optimizer.param_groups
            for p in group["params"]
        }
        self._before[key] = {}
        for p, own in self._of_parameter.items():
            if p not in groups:
                continue
            gradient = None if p.grad is None else self._weights.whole(p, p.grad.detach())
            self._before[key][p] = None
            if p in self._copies:
                with self._weights.attempt():
                    self._before[key][p] = snapshot(optimizer, groups[p], self._copies[p], gradient, own)

    @torch.no_grad()
    def _look(self) -> dict[nn.Parameter, torch.Tensor]:
        """Copy the watched Parameters, each where it is measured, and measure the blocks."""
        copies = self._weights.copies()
        if self._figures is not None:
            present = self._weights.everywhere(self._vectors)
            present |= {name: copies[p] for name, p in self._named.items() if p in copies}
            with self._weights.attempt():
                self._part.heads = self._figures.of_heads(self._step, present)
                self._part.rows = self._figures.rows(present)
        return copies

    @torch.no_grad()
    def _leave(self, optimizer: Optimizer, *_: object) -> None:
        key = id(optimizer)
        if key not in self._depth:
            return
        self._depth[key] -= 1
        if self._depth[key]:
            return
        snapshots = self._before.pop(key)
        del self._depth[key]
        products: dict[str, torch.Tensor] = {}
        for p, before in snapshots.items():
            after = self._weights.whole(p, p.detach())
            with self._weights.attempt():
                if before is not None and after is not None:
                    products |= {
                        m.key: inner_products(m.cut(before.weights), m.cut(after)) for m in self._of_parameter[p]
                    }
        rows: dict[str, list[LogEntry]] = {m.key: [] for p in snapshots for m in self._of_parameter[p]}
        with self._weights.attempt():
            own = [(m, s) for p, s in snapshots.items() if s is not None for m in self._of_parameter[p]]
            rows |= step_rows(self._step, own, products, self._powers)
        self._part.entries += rows.values()
        self._copies = {p: copy for p, copy in (self._copies or {}).items() if p not in snapshots}
        if not self._pending and not self._before:
            self._write()

    def _write(self) -> None:
        """Finish a logged step: add the means over layers, and write the log."""
        if not self._part.entries:
            return
        part, self._part = self._part, Part()
        part = self._weights.share(part, self._powers)
        entries = list(chain(*part.entries))
        channels = () if self._figures is None else self._figures.of_channels(self._step, part.rows)
        rows = [*layer_means(self._step, self._matrices, entries), *entries, *chain(*part.heads), *channels]
        self.latest = tuple(rows)
        self.alerts = tuple(function_alerts(self._last_values, rows)) if self._raises else ()
        self._last_values |= latest_values(self._last_values, rows)
        for alert in self.alerts if self._weights.is_writer else ():
            _log.warning("step %d: %s", alert.step, alert.message)
        if self._log is not None:
            append_log(self._log, rows)
