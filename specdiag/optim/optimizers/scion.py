"""Scion (Pethick et al. 2025) and ScionC, its corrected weight decay (Chou 2025, arXiv 2512.08217)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast, get_args

import torch
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT, StateDict

from specdiag.decay.schedules import inflation
from specdiag.errors import UsageError
from specdiag.live.parameters import ParamGroup
from specdiag.live.sharding import Shards
from specdiag.optim.optimizers.lmo import LMOS, Lmo, auto, check, direction
from specdiag.optim.optimizers.orthogonal import Method
from specdiag.text import checks
from specdiag.text.counts import percent

_MOMENTUM = "momentum_buffer"


class Scion(Optimizer):
    """Optimizer whose steps have one size in a norm chosen for each layer: the LMO of the averaged gradient.

    m <- momentum m + (1 - momentum) g;  w <- (1 - lr weight_decay) w - lr radius lmo(m)

    The published forms are settings of this one. Constrained: `weight_decay=1`, which keeps weights that start in the
    ball of `radius` there. Unconstrained: `weight_decay=0`. Reparameterised (2512.08217, section 2.1), with torch's
    usual meaning of lr and decay: `radius=1, lr=lr radius, weight_decay=1/radius`. Scion's alpha is 1 - momentum.

    ScionC: a group with `target_norm` C^2 decays by weight_decay (lr radius)^2 (2 - alpha)/(2 alpha C^2), which holds
    the squared norm of its weights at C^2 unit steps whatever lr and momentum do (algorithm 2, reconstructed as in
    `decay.schedules.scionc`). Output layers go without, and keep a fixed decay. Schedule C^2 or momentum by
    `GroupSchedule`.

    A parameter without gradient keeps its values and does not decay; one with a zero gradient still decays.

    Example:
        >>> optimizer = Scion(model.parameters(), lr=2**-12, radius=50.0)
    """

    _shards: Shards | None = None
    _has_all: bool = False

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 1.0,
        *,
        lmo: Lmo | str = "auto",
        radius: float = 1.0,
        transpose: bool = False,
        target_norm: float | None = None,
        orthogonalization: Method = "polar-express",
        process_group: ProcessGroup | None = None,
    ) -> None:
        """Take the defaults of the groups, and a process group.

        Args:
            params: parameters or groups.
            lr: fraction of the radius that a step goes.
            momentum: weight of the former average, in [0, 1). The released code has 0 by default, and 0.9 in its runs.
            weight_decay: 1 for constrained Scion.
            lmo: a name of `lmo.LMOS`, or `auto` to choose by the number of axes.
            radius: of the ball, in its norm.
            transpose: True where the weights are stored [in, out], as embeddings and GPT-2's Conv1D are.
            target_norm: C^2 of ScionC; None for Scion.
            orthogonalization: method of spectral steps.
            process_group: its ranks divide momenta and LMOs among them, and must hold the same parameters and
                gradients (DDP); updates are bitwise those of one rank. None: every rank computes all.

        Raises:
            UsageError: a number is out of range, or an LMO is not defined for a parameter.
        """
        if process_group is not None:
            self._shards = Shards(process_group)
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "lmo": lmo,
                "radius": radius,
                "transpose": transpose,
                "target_norm": target_norm,
                "orthogonalization": orthogonalization,
            },
        )

    def add_param_group(self, param_group: ParamGroup) -> None:
        """Add a group as torch does, after a check, and divide it among the ranks.

        Raises:
            UsageError: see the constructor.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check(group)
        except UsageError:
            self.param_groups.pop()
            raise
        if self._shards is not None:
            self._shards.add(group["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Make a step. With a process group it is collective."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            own = [p for p in group["params"] if p.grad is not None and (self._shards is None or self._shards.here(p))]
            if own:
                self._update(group, own)
        if self._shards is not None:
            self._drop_foreign_momenta()
            self._shards.spread(self._parameters())
        return loss

    def consolidate_state_dict(self) -> None:
        """Give every rank all momenta, until its next step. Collective; before `state_dict()` of a sharded Scion."""
        if self._shards is not None:
            self._shards.gather(list(self._parameters()), _MOMENTUM, self.state)
            self._has_all = True

    def state_dict(self) -> StateDict:
        """Return the state as torch does, with the momenta of all ranks.

        Raises:
            UsageError: this rank has its own momenta only.
        """
        if self._shards is not None and self.state and not self._has_all:
            raise UsageError("this rank holds a part of the momenta: call consolidate_state_dict() on every rank first")
        return super().state_dict()

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state. Every rank loads the whole state and keeps its part from the next step on."""
        super().load_state_dict(state_dict)
        self._has_all = True

    def _parameters(self) -> Iterable[torch.Tensor]:
        return (p for group in self.param_groups for p in group["params"])

    def _drop_foreign_momenta(self) -> None:
        if self._has_all and self._shards is not None:
            for parameter in self._parameters():
                if not self._shards.here(parameter):
                    self.state.pop(parameter, None)
        self._has_all = False

    def _update(self, group: ParamGroup, parameters: list[torch.Tensor]) -> None:
        averages = self._update_momenta(parameters, float(group["momentum"]))
        removed = removed_fraction(group)
        if removed:
            torch._foreach_mul_(parameters, 1 - removed)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        stride = float(group["lr"]) * group["radius"]
        for parameter, average in zip(parameters, averages, strict=True):
            # One by one: in a batch rounding would depend on its other matrices, and so on the number of ranks.
            upright = average.mT if group["transpose"] else average
            kind = auto(upright.shape) if group["lmo"] == "auto" else group["lmo"]
            step = direction(kind, upright, group["orthogonalization"])
            parameter.add_(step.mT if group["transpose"] else step, alpha=-stride)

    def _update_momenta(self, parameters: list[torch.Tensor], momentum: float) -> list[torch.Tensor]:
        """Update the momenta by this gradient and return them; the gradients themselves where there was no momentum."""
        gradients: list[torch.Tensor] = []
        for parameter in parameters:
            gradient = cast("torch.Tensor", parameter.grad)
            if gradient.is_sparse:
                raise UsageError("Scion takes no sparse gradients: build the embedding with sparse=False")
            gradients.append(gradient.to(parameter.dtype))
            if momentum and _MOMENTUM not in self.state[parameter]:
                self.state[parameter][_MOMENTUM] = torch.zeros_like(parameter)
        averages = [
            self.state.get(parameter, {}).get(_MOMENTUM, gradient)
            for parameter, gradient in zip(parameters, gradients, strict=True)
        ]
        moving = [(a, g) for a, g in zip(averages, gradients, strict=True) if a is not g]
        if moving:
            buffers, new = ([pair[i] for pair in moving] for i in (0, 1))
            torch._foreach_lerp_(buffers, new, 1 - momentum)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return averages


def removed_fraction(group: ParamGroup) -> float:
    """Return the fraction of the weights that the decay of a step removes.

    Args:
        group: of Scion.

    Raises:
        UsageError: a step would remove all of the weights.
    """
    lr, target = float(group["lr"]), group["target_norm"]
    removed = lr * group["weight_decay"]
    if target is not None:
        removed *= lr * group["radius"] ** 2 * inflation(1 - group["momentum"]) / (2 * target)
    if removed >= 1:
        raise UsageError(
            f"lr {lr:g}, weight_decay {group['weight_decay']:g} and target_norm {target} would remove "
            f"{percent(removed)} of the weights in one step: lower the lr or raise the target"
        )
    return removed


def _check(group: ParamGroup) -> None:
    for key in ("lr", "momentum", "weight_decay", "radius", "target_norm"):
        if group[key] is not None or key != "target_norm":
            checks.number(key, group[key])
    for key in ("orthogonalization", "lmo"):
        checks.text(key, group[key])
    checks.flag("transpose", group["transpose"])
    for key, bound, fits in (
        ("lr", "at least 0", lambda v: v >= 0),
        ("momentum", "in [0, 1); Scion's alpha is 1 - momentum", lambda v: 0 <= v < 1),
        ("weight_decay", "at least 0; 1 is constrained Scion", lambda v: v >= 0),
        ("radius", "above 0", lambda v: v > 0),
        ("target_norm", "above 0, or None for Scion", lambda v: v is None or v > 0),
        ("orthogonalization", f"one of {', '.join(get_args(Method))}", lambda v: v in get_args(Method)),
        ("lmo", f"auto or one of {', '.join(LMOS)}", lambda v: v == "auto" or v in LMOS),
    ):
        if not fits(group[key]):
            raise UsageError(f"{key}={group[key]} must be {bound}")
    for parameter in group["params"]:
        if not parameter.is_floating_point():
            raise UsageError(f"Scion takes real parameters, not {parameter.dtype}")
        if hasattr(parameter, "device_mesh"):
            raise UsageError("Scion needs whole matrices, not FSDP's shards: train with DDP and process_group=...")
        if group["transpose"] and parameter.ndim < 2:
            raise UsageError(f"transpose=True needs matrices and a parameter has shape {tuple(parameter.shape)}")
        if group["lmo"] != "auto":
            check(group["lmo"], parameter.shape)
