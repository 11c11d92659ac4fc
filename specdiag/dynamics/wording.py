"""Sentences and labels for predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from specdiag.dynamics.records import Setting, Simulation


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


def findings(simulation: Simulation) -> Iterator[str]:
    """Write where the norm tends, how many steps that takes, and where the run ends.

    Args:
        simulation: a prediction.
    """
    b, s, last = simulation.balance, simulation.setting, simulation.course[-1]
    if b.rms is None or b.timescale is None or b.norm_time is None:
        yield f"Nothing decays. After {last.step:,} steps a weight has RMS {last.rms:.4g}, from {s.initial_rms:.4g}."
        return
    tokens = f" ({b.timescale_tokens:.3g} tokens)" if b.timescale_tokens is not None else ""
    near = f"; from RMS {s.initial_rms:.4g} within 1 % of it after {b.steps_to_steady:,}" if b.steps_to_steady else ""
    yield (
        f"At the peak lr decay and steps balance at RMS {b.rms:.4g} (Frobenius {b.frobenius_norm:.4g}). Weights "
        f"forget over {b.timescale:,.0f} steps{tokens}, the squared norm over {b.norm_time:,.0f}{near}."
    )
    yield f"After {last.step:,} steps the RMS is {last.rms:.4g}{_distance(last.rms, b.rms)}{_explanation(simulation)}."


def _distance(rms: float, balance: float) -> str:
    if balance == 0:
        return ""
    if rms > 2 * balance:
        return f", {rms / balance:.3g} times that balance"
    return f", {rms / balance - 1:+.1%} from that balance".replace("-0.0%", "0.0%")


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
