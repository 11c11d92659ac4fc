"""AlphaDecay for anybody's training loop (arXiv 2506.14562): weight decay that follows the exponents of the weights."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Sequence
from statistics import fmean
from types import TracebackType
from typing import get_args

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from specdiag.decay.assignment import Rule, assign, check_rule, largest_ratio
from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.live.multipliers import attach
from specdiag.live.optimizers import refusal, unwrap_optimizers
from specdiag.optim.rules.background import Background
from specdiag.optim.rules.measurement_schedule import Mode, due, rounds
from specdiag.optim.rules.participants import select_participants
from specdiag.optim.rules.precision import warn_of_rounding
from specdiag.optim.rules.replicas import Replicas
from specdiag.records import ROLES
from specdiag.spectra.live_alpha import Basis, null_of
from specdiag.text import checks

_log = logging.getLogger("specdiag")

_PATIENCE = 100
"""Calls without a step of the optimizer that are allowed in a row. A gradient scaler may skip a few dozen."""


class AlphaDecay:
    """Multiplies the weight decay of attention and MLP matrices by ratios that follow their exponents.

    Ratios act inside `optimizer.step()` alone: groups, schedulers and checkpoints of the optimizer keep their layout,
    and with all ratios 1 a run is bitwise the same as without AlphaDecay. Where ranks train together every one must
    construct, step and load: these are collective.

    Attributes:
        waited: seconds that training has waited for measurements so far, copies of weights included.

    Example:
        >>> decay = AlphaDecay(model, optimizer)
        >>> for step, batch in enumerate(loader):
        ...     model(**batch).loss.backward()
        ...     decay.step(step)
        ...     optimizer.step()
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        s1: float = 0.67,
        s2: float = 3.0,
        every: int = 500,
        mode: Mode = "round-robin",
        rule: Rule = "linear",
        basis: Basis = "alpha",
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        roles: str | Sequence[str] = (),
        measure_first: bool | None = None,
        process_group: ProcessGroup | None = None,
    ) -> None:
        """Attach to a live optimizer, after it was prepared, sharded and loaded.

        Args:
            model: names the parameters; wrappers (DDP, torch.compile) are looked through.
            optimizer: one or several. Its own decay is the base; groups without decay keep none.
            s1: ratio of the heaviest tail, for the linear rule. Paper: 0.67.
            s2: ratio of the lightest tail. Paper: 3, or 5 for small decays.
            every: steps between two measurements of a module. Paper: 500.
            mode: `round-robin` measures a few modules at a time, so that no exponent is older than `every` steps;
                `sweep` all of them when step + 1 is a multiple of `every`, as the released code does; `background`
                the same as `round-robin`, on copies of the weights in threads, between one step of the optimizer and
                the next.
            rule: `linear` (the paper), `sqrt`, `log2`, `sigmoid`, `uniform`, `none`.
            basis: `alpha` (the paper), or `square`: square_alpha, which shape does not move.
            include: globs on names; only these take part.
            exclude: globs on names; these do not.
            roles: roles that take part, instead of the projections of attention and MLP.
            measure_first: True measures all modules before the first step, for weights that are already trained; False
                starts at ratio 1 until every module has been measured once; None measures first unless the first step
                is step 0. A loaded state takes precedence.
            process_group: the ranks that hold the same modules; None for all.

        Raises:
            UsageError: an option makes no sense, a glob matches nothing, or the optimizer cannot take a changing decay;
                the message shows an alternative.
        """
        s1, s2 = check_rule(rule, s1, s2)
        _check(every, mode, basis)
        measure_first = None if measure_first is None else checks.flag("measure_first", measure_first)
        self._settings = {"s1": s1, "s2": s2, "every": every, "mode": mode, "rule": rule, "basis": basis}
        self._rule: Rule = rule
        self._basis: Basis = basis
        self._mode: Mode = mode
        self._s1, self._s2, self._every, self._measure_first = s1, s2, every, measure_first
        self._optimizers = unwrap_optimizers(optimizer)
        include, exclude, roles = (
            checks.texts("include", include),
            checks.texts("exclude", exclude),
            checks.each_of("roles", roles, ROLES),
        )
        self._participants, self._matrices = select_participants(
            model, self._optimized(), include=include, exclude=exclude, roles=roles
        )
        parameters = list(dict.fromkeys(m.parameter for m in self._matrices))
        self._parameters = dict(zip((p.name for p in self._participants), parameters, strict=True))
        self._replicas = Replicas(self._matrices, process_group)
        self._rounds = rounds([m.cost for m in self._matrices], self._replicas.world)
        self._exponents: dict[str, float | None] = {}
        self._ratios = dict.fromkeys(self._parameters, 1.0)
        self._acting: dict[torch.Tensor, float] = {}
        self._last: int | None = None
        self._failing: set[str] = set()
        self.waited = 0.0
        self._warn()
        self._multipliers, self._detach = attach(
            self._optimizers,
            "ratio",
            "AlphaDecay",
            lambda parameter, _: self._acting.get(parameter, 1.0),
            after=None if mode != "background" else self._measure_ahead,
        )
        self._is_attached = True
        self._steps_counted, self._calls_without_step = -1, 0
        self._stepped: set[Optimizer] = set()
        self._background = None if mode != "background" else Background(self._matrices, self._replicas, basis)

    @property
    def ratios(self) -> dict[str, float]:
        """Current factor on the decay of each Parameter, by its name in a checkpoint."""
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
                f"the saved AlphaDecay state is of other modules: {len(modules)} against {len(own)} here, the first "
                f"difference is '{differing[0]}'; choose the same include, exclude and roles"
            )
        if state["settings"]["basis"] != self._basis:
            raise UsageError(
                f"the saved AlphaDecay state holds exponents of basis {state['settings']['basis']}, not {self._basis}"
            )
        changed = [f"{k} {v} -> {self._settings[k]}" for k, v in state["settings"].items() if v != self._settings[k]]
        if changed:
            _log.warning("AlphaDecay goes on with other settings: %s", ", ".join(changed))
        self._exponents = dict(state["exponents"])
        self._last = state["step"]
        self._ratios, self._acting = dict.fromkeys(self._parameters, 1.0), {}
        self._assign()

    def detach(self) -> None:
        """Remove the ratios from the optimizer, and end the threads."""
        self._detach()
        self._is_attached = False
        if self._background is not None:
            self._background.close()

    def __enter__(self) -> AlphaDecay:
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
        layers = [participant.layer for participant in self._participants]
        ratios = assign(self._rule, values, layers, self._s1, self._s2)
        self._ratios = dict(zip(self._parameters, ratios, strict=True))
        self._acting = dict(zip(self._parameters.values(), ratios, strict=True))

    def _value(self, index: int) -> float | None:
        parts = [self._exponents.get(record.key) for record in self._participants[index].records]
        known = [value for value in parts if value is not None]
        return fmean(known) if known else None

    def _optimized(self) -> set[torch.Tensor]:
        return {p for optimizer in self._optimizers for group in optimizer.param_groups for p in group["params"]}

    def _check_attached(self) -> None:
        if not self._is_attached:
            raise UsageError("this AlphaDecay was detached: construct a new one")
        optimized = self._optimized()
        lost = next((name for name, parameter in self._parameters.items() if parameter not in optimized), None)
        if lost is not None:
            raise UsageError(
                f"the optimizer no longer holds {lost}: it was rebuilt or sharded after AlphaDecay was attached; "
                "construct AlphaDecay after accelerator.prepare, fully_shard and the like"
            )
        steps = sum(multipliers.steps for multipliers in self._multipliers)
        self._calls_without_step = self._calls_without_step + 1 if steps == self._steps_counted else 0
        self._steps_counted = steps
        if self._calls_without_step >= _PATIENCE:
            raise UsageError(refusal(self._optimizers[0], f"has not run its step hooks for {_PATIENCE} steps"))

    def _warn(self) -> None:
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        own = set(self._parameters.values())
        decays = [group["weight_decay"] for group in groups if any(p in own for p in group["params"])]
        if not any(decays):
            warnings.warn(
                f"The weight decay of all {len(own)} matrices is 0: AlphaDecay multiplies it and so does nothing. Give "
                "the optimizer one, such as weight_decay=0.1.",
                UserWarning,
                stacklevel=3,
            )
        warn_of_rounding(self._optimizers, list(own), largest_ratio(self._rule, self._s2))
        _log.info("AlphaDecay: %d matrices of %d Parameters take part", len(self._matrices), len(own))


def _check(every: int, mode: str, basis: str) -> None:
    if checks.whole("every", every) < 1:
        raise UsageError(f"every={every} must be a number of steps of at least 1; the paper's is 500")
    checks.one_of("mode", mode, get_args(Mode))
    checks.one_of("basis", basis, get_args(Basis))
