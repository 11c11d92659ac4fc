"""Ratios of Parameters that follow the exponents of their weights, measured while a model trains."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean
from types import TracebackType
from typing import ClassVar, Self, get_args

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.live.attaching import attach
from specdiag.live.multipliers import Kind
from specdiag.live.optimizers import Changed, refusal, unwrap_optimizers
from specdiag.optim.rules.background import Background
from specdiag.optim.rules.measurement_schedule import Mode, due, rounds
from specdiag.optim.rules.participants import select_participants
from specdiag.optim.rules.replicas import Replicas
from specdiag.records import ROLES
from specdiag.spectra.live_alpha import Basis, null_of
from specdiag.text import checks

_log = logging.getLogger("specdiag")

_PATIENCE = 100
"""Calls without a step of the optimizer that are allowed in a row. A gradient scaler may skip a few dozen."""


class MeasuredRatios(ABC):
    """Measures exponents on a schedule, and multiplies a setting of the optimizer by the ratios that follow from them.

    Ratios act inside `optimizer.step()` alone. Where ranks train together every one must construct, step and load:
    these are collective.

    Attributes:
        waited: seconds that training has waited for measurements so far, copies of weights included.
    """

    _kind: ClassVar[Kind]
    _changed: ClassVar[Changed]

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        settings: Table,
        *,
        every: int,
        mode: Mode,
        basis: Basis,
        include: str | Sequence[str],
        exclude: str | Sequence[str],
        roles: str | Sequence[str],
        measure_first: bool | None,
        process_group: ProcessGroup | None,
        unmeasured: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        """Select what takes part, and attach to the optimizer.

        Args:
            model: names the parameters; wrappers (DDP, torch.compile) are looked through.
            optimizer: one or several.
            settings: of the subclass, which its state saves beside those of this class.
            every: steps between two measurements of a module.
            mode: see `measurement_schedule`.
            basis: exponent that is measured.
            include: globs on names; only these take part.
            exclude: globs on names; these do not.
            roles: roles that take part, instead of the projections of attention and MLP.
            measure_first: see `AlphaDecay`.
            process_group: the ranks that hold the same modules; None for all.
            unmeasured: further Parameters with a ratio, by name; those that the optimizer holds get one.

        Raises:
            UsageError: an option makes no sense, a glob matches nothing, or the optimizer cannot take the ratios; the
                message shows an alternative.
        """
        _check(every, mode, basis)
        self._measure_first = None if measure_first is None else checks.flag("measure_first", measure_first)
        self._settings = {**settings, "every": every, "mode": mode, "basis": basis}
        self._basis: Basis = basis
        self._mode: Mode = mode
        self._every = every
        self._optimizers = unwrap_optimizers(optimizer, self._changed)
        self._participants, self._matrices = select_participants(
            model,
            self._optimized(),
            include=checks.texts("include", include),
            exclude=checks.texts("exclude", exclude),
            roles=checks.each_of("roles", roles, ROLES),
        )
        parameters = list(dict.fromkeys(m.parameter for m in self._matrices))
        self._parameters = dict(zip((p.name for p in self._participants), parameters, strict=True))
        measured, optimized = set(parameters), self._optimized()
        others = {n: p for n, p in (unmeasured or {}).items() if p in optimized and p not in measured}
        self._unmeasured = tuple(others)
        self._named = self._parameters | others
        self._replicas = Replicas(self._matrices, process_group)
        self._rounds = rounds([m.cost for m in self._matrices], self._replicas.world)
        self._exponents: dict[str, float | None] = {}
        self._ratios = dict.fromkeys(self._named, 1.0)
        self._acting: dict[torch.Tensor, float] = {}
        self._last: int | None = None
        self._failing: set[str] = set()
        self.waited = 0.0
        self._warn()
        self._multipliers, self._detach = attach(
            self._optimizers,
            self._kind,
            type(self).__name__,
            lambda parameter, _: self._acting.get(parameter, 1.0),
            after=None if mode != "background" else self._measure_ahead,
        )
        self._is_attached = True
        self._steps_counted, self._calls_without_step = -1, 0
        self._stepped: set[Optimizer] = set()
        self._background = None if mode != "background" else Background(self._matrices, self._replicas, basis)

    @property
    def ratios(self) -> dict[str, float]:
        """Current factor of each Parameter, by its name in a checkpoint."""
        return dict(self._ratios)

    @property
    def alphas(self) -> dict[str, float | None]:
        """The latest exponent of each Parameter, mean over its parts; None where it has none or not yet any."""
        return {participant.name: self._value(index) for index, participant in enumerate(self._participants)}

    @property
    def rhos(self) -> dict[str, float | None]:
        """(alpha - 1)/(alpha of random matrices of that shape - 1) of each Parameter; None where there is no alpha."""
        rhos: dict[str, float | None] = {}
        for participant, value in zip(self._participants, self.alphas.values(), strict=True):
            nulls = fmean(null_of(record, self._basis) for record in participant.records)
            rhos[participant.name] = None if value is None else (value - 1) / (nulls - 1)
        return rhos

    def step(self, global_step: int | None = None) -> None:
        """Measure what is due and set the ratios for the optimizer step that follows.

        Args:
            global_step: optimizer steps done so far, 0 before the first; None counts calls.

        Raises:
            UsageError: it was detached, the optimizer no longer holds the model's parameters, or the optimizer's steps
                do not run the hooks.
        """
        started = time.perf_counter()
        self._check_attached()
        step = global_step if global_step is not None else 0 if self._last is None else self._last + 1
        first = self._last is None
        last = step - 1 if self._last is None or step < self._last else self._last
        self._last = step
        if first and (step != 0 if self._measure_first is None else self._measure_first):
            self._measure(self._rounds)
        else:
            self._measure(self._due(last, step))
        self._stepped.clear()
        self.waited += time.perf_counter() - started

    def state_dict(self) -> Table:
        """Return the state that a resumed run continues from. It can be written as JSON."""
        return {
            "settings": dict(self._settings),
            "step": self._last,
            "modules": [matrix.key for matrix in self._matrices],
            "exponents": dict(self._exponents),
        }

    def load_state_dict(self, state: Table) -> None:
        """Continue from a saved state. Settings stay those of the constructor.

        Raises:
            UsageError: the state is of other modules or of another basis.
        """
        modules, own = list(state["modules"]), [matrix.key for matrix in self._matrices]
        if modules != own:
            differing = [key for key in (*modules, *own) if (key in modules) != (key in own)] or own
            raise UsageError(
                f"the saved {type(self).__name__} state is of other modules: {len(modules)} against {len(own)} here, "
                f"the first difference is '{differing[0]}'; choose the same include, exclude and roles"
            )
        if state["settings"]["basis"] != self._basis:
            raise UsageError(
                f"the saved {type(self).__name__} state holds exponents of basis {state['settings']['basis']}, not "
                f"{self._basis}"
            )
        changed = [f"{k} {v} -> {self._settings[k]}" for k, v in state["settings"].items() if v != self._settings[k]]
        if changed:
            _log.warning("%s goes on with other settings: %s", type(self).__name__, ", ".join(changed))
        self._exponents = dict(state["exponents"])
        self._last = state["step"]
        self._ratios, self._acting = dict.fromkeys(self._named, 1.0), {}
        self._assign()

    def detach(self) -> None:
        """Remove the ratios from the optimizer, and end the threads."""
        self._detach()
        self._is_attached = False
        if self._background is not None:
            self._background.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _measure(self, selected: Sequence[Sequence[int]]) -> None:
        if not selected:
            return
        background = self._background
        exponents = (
            self._replicas.measure(selected, self._basis) if background is None else background.measure(selected)
        )
        for index, value in exponents.items():
            key = self._matrices[index].key
            if value is not None and math.isnan(value):
                value = self._exponents.get(key)
                if key not in self._failing:
                    kept = "ratio 1" if value is None else f"exponent {value:.3f}"
                    _log.warning("%s could not be measured (not finite, or no convergence): keeps %s", key, kept)
                self._failing.add(key)
            else:
                self._failing.discard(key)
            self._exponents[key] = value
        self._assign()

    def _due(self, last: int, step: int) -> list[list[int]]:
        return [self._rounds[i] for i in due(len(self._rounds), self._every, self._mode, last, step)]

    def _measure_ahead(self, optimizer: Optimizer) -> None:
        """Once all optimizers have stepped, start the measurements that are due before their next step."""
        self._stepped.add(optimizer)
        if self._background is None or self._last is None or len(self._stepped) < len(self._optimizers):
            return
        started = time.perf_counter()
        self._background.start(self._due(self._last, self._last + 1))
        self.waited += time.perf_counter() - started

    def _assign(self) -> None:
        """Set the ratios by the latest exponents. They stay 1 until every module has been measured once."""
        if len(self._exponents) < len(self._matrices):
            return
        values = [self._value(index) for index in range(len(self._participants))]
        self._retarget(self._targets(values, [participant.block for participant in self._participants]))

    @abstractmethod
    def _targets(self, values: Sequence[float | None], blocks: Sequence[Hashable]) -> dict[str, float]:
        """Return the ratio of every Parameter by name, in the order of `_named`.

        Args:
            values: exponents of the participants; None where one has none.
            blocks: their component and number; None outside of blocks.
        """

    @abstractmethod
    def _warn(self) -> None:
        """Warn of what makes the ratios useless; the participants are known, and nothing is attached yet."""

    def _retarget(self, ratios: dict[str, float]) -> None:
        """Take the ratios that follow from the latest exponents."""
        self._act(ratios)

    def _act(self, ratios: dict[str, float]) -> None:
        """Let these ratios act from the next step on."""
        self._ratios = ratios
        self._acting = {self._named[name]: ratio for name, ratio in ratios.items()}

    def _value(self, index: int) -> float | None:
        parts = [self._exponents.get(record.key) for record in self._participants[index].records]
        known = [value for value in parts if value is not None]
        return fmean(known) if known else None

    def _optimized(self) -> set[torch.Tensor]:
        return {p for optimizer in self._optimizers for group in optimizer.param_groups for p in group["params"]}

    def _check_attached(self) -> None:
        if not self._is_attached:
            raise UsageError(f"this {type(self).__name__} was detached: construct a new one")
        optimized = self._optimized()
        lost = next((name for name, parameter in self._parameters.items() if parameter not in optimized), None)
        if lost is not None:
            raise UsageError(
                f"the optimizer no longer holds {lost}: it was rebuilt or sharded after {type(self).__name__} was "
                "attached; construct it after accelerator.prepare, fully_shard and the like"
            )
        steps = sum(multipliers.steps for multipliers in self._multipliers)
        self._calls_without_step = self._calls_without_step + 1 if steps == self._steps_counted else 0
        self._steps_counted = steps
        if self._calls_without_step >= _PATIENCE:
            why = f"has not run its step hooks for {_PATIENCE} steps"
            raise UsageError(refusal(self._optimizers[0], why, self._changed))


def _check(every: int, mode: str, basis: str) -> None:
    if checks.whole("every", every) < 1:
        raise UsageError(f"every={every} must be a number of steps of at least 1; the paper's is 500")
    checks.one_of("mode", mode, get_args(Mode))
    checks.one_of("basis", basis, get_args(Basis))
