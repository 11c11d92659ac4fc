"""Sentences and labels for predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from specdiag.dynamics.records import Setting, Simulation

_REACHED = 0.0005
"""Largest relative distance that is printed as 0.0 %."""
_SAME = 1.01
"""Ratio of norms below which two settings end alike."""


def labels(simulations: Sequence[Simulation]) -> list[str]:
    """Make a short label for each simulation, from the settings in which they differ.

    Args:
        simulations: that are shown together.

    Returns:
        Labels in the same order.
    """
    optimizers = {s.setting.optimizer for s in simulations}
    decays = {s.setting.weight_decay for s in simulations}
    mixed = len({s.setting.corrected for s in simulations if s.setting.optimizer != "adamc"}) > 1
    return [
        " ".join(
            part
            for part in (
                s.setting.optimizer if len(optimizers) > 1 or (len(decays) == 1 and not mixed) else "",
                f"decay {s.setting.weight_decay:g}" if len(decays) > 1 else "",
                _correction(s.setting) if mixed else "",
            )
            if part
        )
        for s in simulations
    ]


def headline(simulations: Sequence[Simulation]) -> str:
    """Say where the norm ends, and with several settings which ends lowest and which highest.

    Args:
        simulations: predictions for runs of one length.
    """
    steps = simulations[0].course[-1].step
    if len(simulations) == 1:
        return f"After {steps:,} steps {_end(simulations[0])}."
    ends = {name: s.course[-1].rms for s, name in zip(simulations, labels(simulations), strict=True)}
    low, high = min(ends, key=ends.__getitem__), max(ends, key=ends.__getitem__)
    if ends[high] < _SAME * ends[low]:
        return f"After {steps:,} steps all settings end at RMS {ends[low]:.4g}, but for 1 %."
    return (
        f"After {steps:,} steps the RMS is lowest for {low} ({ends[low]:.4g}), highest for {high} ({ends[high]:.4g})."
    )


def _end(simulation: Simulation) -> str:
    b, s, last = simulation.balance, simulation.setting, simulation.course[-1]
    if b.rms is None:
        return f"the RMS of a weight is {last.rms:.4g}, from {s.initial_rms:.4g}: nothing decays"
    return f"the RMS of a weight is {last.rms:.4g}{_distance(last.rms, b.rms)}{_explanation(simulation)}"


def findings(simulation: Simulation) -> Iterator[str]:
    """Write where the norm tends, how many steps that takes, and where the run ends.

    Args:
        simulation: a prediction.
    """
    b, s, last = simulation.balance, simulation.setting, simulation.course[-1]
    yield f"After {last.step:,} steps {_end(simulation)}."
    if b.rms is None or b.timescale is None or b.norm_time is None:
        return
    tokens = f" ({b.timescale_tokens:.3g} tokens)" if b.timescale_tokens is not None else ""
    yield (
        f"Decay and updates balance at RMS {b.rms:.4g} at the peak lr (Frobenius {b.frobenius_norm:.4g} of "
        f"{'x'.join(map(str, s.shape))}). Weights forget over {b.timescale:,.0f} steps{tokens}, the squared norm over "
        f"{b.norm_time:,.0f}."
    )
    if b.steps_to_steady:
        yield f"From RMS {s.initial_rms:.4g} a norm comes within 1 % of its balance after {b.steps_to_steady:,} steps."


def _distance(rms: float, balance: float) -> str:
    if balance == 0:
        return ""
    if rms > 2 * balance:
        return f", {rms / balance:.3g} times its balance"
    if abs(rms / balance - 1) < _REACHED:
        return ", its balance"
    change = rms / balance - 1
    return f", {100 * abs(change):.1f} % {'above' if change > 0 else 'below'} its balance"


def _explanation(simulation: Simulation) -> str:
    s, b, last = simulation.setting, simulation.balance, simulation.course[-1]
    off = last.rms / b.rms - 1 if b.rms else 0.0
    if abs(off) < 0.02:
        return ""
    if b.steps_to_steady is not None and b.steps_to_steady > s.steps:
        return ": the run is too short to reach it"
    if s.lr_shape != "constant":
        return (
            ": the lr fell, and its own balance with it"
            if not s.corrected
            else ": lr and decay faded before it was reached"
        )
    return ""


def _correction(setting: Setting) -> str:
    return "" if setting.optimizer == "adamc" else "corrected" if setting.corrected else "uncorrected"
