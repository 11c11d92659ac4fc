"""Predicted weight norms over the steps of a run, one line a setting, above the lr and the decay that lead to them."""

from __future__ import annotations

from matplotlib.ticker import MaxNLocator

from specdiag.dynamics.records import Simulation
from specdiag.dynamics.wording import labels
from specdiag.errors import UsageError
from specdiag.text import checks
from specdiag.views.figures.palette import palette
from specdiag.views.figures.style import ReportFigure, legend, new_figure, styled

_DOTS = 40
"""Largest number of points of a simulation: more would hide the line."""


@styled
def norms_predicted(*simulations: Simulation) -> ReportFigure:
    """Draw the RMS of a weight by step, expected (lines) and of the optimizer on noise (dots), with lr and decay below.

    A dashed line is the balance at the peak lr.

    Args:
        simulations: from `simulate`; up to six settings.

    Returns:
        A matplotlib figure, which `savefig` writes to a file.

    Raises:
        UsageError: none, or more than there are colours.
    """
    for each in simulations:
        checks.instance("simulations", each, Simulation, "from simulate")
    if not 1 <= len(simulations) <= len(palette().checkpoints):
        raise UsageError(f"a figure shows 1 to {len(palette().checkpoints)} settings, not {len(simulations)}")
    figure = new_figure(7.6, 5.6, _title(simulations), _caption(simulations))
    norm, lr, decay = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1, 1]})
    shared = len({s.balance.rms for s in simulations}) == 1
    for s, name, colour in zip(simulations, labels(simulations), palette().checkpoints, strict=False):
        steps = [p.step for p in s.course]
        norm.plot(steps, [p.rms for p in s.course], color=colour, label=name)
        if s.balance.rms and (not shared or s is simulations[0]):
            norm.axhline(
                s.balance.rms,
                color=palette().faint if shared else colour,
                linestyle=(0, (5, 2)),
                linewidth=0.8,
                label="balance at\nthe peak lr",
            )
        dots = [(p.step, p.simulated_rms) for p in s.course[:: max(1, len(s.course) // _DOTS)] if p.simulated_rms]
        norm.plot(
            [x for x, _ in dots], [y for _, y in dots], ".", color=colour, label="simulated" if dots else "_nothing"
        )
        lr.plot(steps, [p.lr for p in s.course], color=palette().faint)
        decay.plot(steps, [p.weight_decay for p in s.course], color=colour)
    norm.set_ylabel("RMS of a weight")
    lr.set_ylabel("lr")
    decay.set_ylabel("decay")
    for axes in (norm, lr, decay):
        axes.set_ylim(0, None)
        axes.yaxis.set_major_locator(MaxNLocator(3 if axes is not norm else 6))
    decay.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    decay.set_xlabel("step")
    decay.set_xlim(0, max(s.setting.steps for s in simulations))
    legend(figure)
    return figure


def _title(simulations: tuple[Simulation, ...]) -> str:
    """Give the norms at the end, beside that at the start."""
    ends = ", ".join(f"{name} {s.course[-1].rms:.3g}" for s, name in zip(simulations, labels(simulations), strict=True))
    steps = dict.fromkeys(f"{s.setting.steps:,}" for s in simulations)
    return (
        f"Predicted RMS of a weight after {', '.join(steps)} steps: {ends}; "
        f"at the start {simulations[0].course[0].rms:.3g}"
    )


def _caption(simulations: tuple[Simulation, ...]) -> str:
    s = simulations[0].setting
    names = ", ".join(dict.fromkeys(one.setting.optimizer for one in simulations))
    drawn = next((one for one in simulations if one.simulated_shape), None)
    walk = "" if drawn is None else f"; dots: simulated, seed {drawn.seed}"
    return (
        f"{names}: lr {s.lr:g} {s.lr_shape}, warm-up {s.warmup}, decay "
        f"{', '.join(dict.fromkeys(f'{one.setting.weight_decay:g}' for one in simulations))}, shape "
        f"{'x'.join(map(str, s.shape))}, initial RMS {s.initial_rms:.4g}; random-walk model, gradients are noise{walk}"
    )
