"""Assumptions of a prediction as sentences, with the corrected factor where a paper's is known to be wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator

from specdiag.dynamics.records import Setting
from specdiag.dynamics.steady import inflation, removed
from specdiag.dynamics.updates import MOMENTUM, NEWTON_SCHULZ_SQUARE, SPECTRAL_REPEATS, Shape, Update, interpolated


def assumptions(update: Update, setting: Setting, sample: Shape | None) -> tuple[str, ...]:
    """Write the assumptions of a prediction.

    Args:
        update: of the optimizer.
        setting: of the simulated run.
        sample: shape of the tensor that the optimizer itself was run on; None without a stochastic simulation.

    Returns:
        Sentences, the general ones first.
    """
    eta = removed(update, setting.lr, setting.weight_decay)
    return (
        "Model: gradients are white noise that does not point along the weights, so updates turn them at random "
        "(arXiv 2512.08217, equations 1 and 2). A loss that still falls, and an output layer under cross-entropy "
        "(its appendix D), add a part along the weights that is not in here.",
        *_steps(update, setting, eta),
        *_course(update, setting, eta),
        *(() if sample is None else (_sample_sentence(setting, sample),)),
    )


def _steps(update: Update, setting: Setting, eta: float) -> Iterator[str]:
    name, inflated, limit = update.optimizer, inflation(update, eta), inflation(update)
    factor = f"R = {inflated:.4g} at this decay ({limit:.4g} as it goes to 0)"
    if name == "random-walk":
        yield "Steps: a fresh N(0, 1) number in each coordinate, without momentum: R = 1."
    elif name in ("adamw", "adamc"):
        yield (
            f"Steps: the second moment stands still, so a coordinate of u has mean square (1 - beta1)/(1 + beta1) = "
            f"{update.square:.4g}. Momentum inflates the squared norm by {factor}. Their product is near 1, so the "
            "norm does not depend on the betas. Equation 2 with the measured step and without R would give norms "
            f"{math.sqrt(limit):.3g} times too small. A beta2 of 0.95 makes norms 1 to 2 % "
            "smaller, as measured on noise at lr x decay of 0.001 and 0.005."
        )
    elif name == "adamw-renormalized":
        yield (
            "Steps: AdamW's, without what their perpendicular part adds to the norm (algorithm 1 as reconstructed). "
            f"What momentum adds is left: R = {inflated:.4g} in place of {inflated + 1:.4g}."
        )
    elif name in ("sgdm", "sgdw"):
        way = (
            "the decay is coupled, as in torch.optim.SGD: it goes through the momentum, which makes it "
            f"lr x decay/(1 - mu) = {eta:.4g} a step (exact autoregression)"
            if update.coupled
            else "the decay is decoupled"
        )
        yield (
            f"Steps: gradients have RMS {setting.gradient_rms:g} in a coordinate throughout (gradient_rms=); the norm "
            "is proportional to it, and in a scale-invariant network gradients shrink as it grows. "
            f"Here {way}; R = {inflated:.4g}."
        )
    elif name == "scion-l2":
        yield f"Steps: RMS 1 in a coordinate (BiasRMS, ColNorm); momentum: {factor}, the paper's (2 - alpha)/alpha."
    else:
        yield from _corrected_factor(update, setting, factor)
    if name in MOMENTUM:
        kept = update.kept[0]
        weighs = "adds the whole gradient" if name.startswith("sgd") else f"gives the new gradient {1 - kept:g}"
        yield f"Momentum: a step keeps {kept:g} of the buffer and {weighs}."


def _corrected_factor(update: Update, setting: Setting, factor: str) -> Iterator[str]:
    if update.optimizer == "scion-sign":
        yield (
            f"Steps: sign/d_in. Corrected factor: {factor}, the arcsine law of Gaussian momentum, in place of the "
            f"paper's (2 - alpha)/alpha = {(1 + update.memory) / (1 - update.memory):.4g}, which holds for l2 norms."
        )
    elif update.optimizer == "lion":
        yield (
            f"Steps: signs. Corrected factor: {factor}, the arcsine law for Gaussian gradients; Kosson et al. "
            "take its first order, 2/pi."
        )
    elif update.optimizer == "scion-spectral":
        sides = max(setting.shape) / min(setting.shape)
        yield (
            f"Steps: sqrt(d_out/d_in) U V^T. Corrected factor, measured: {factor}, with "
            f"{interpolated(SPECTRAL_REPEATS, sides):.3f} of the l2 formula's R - 1, as in Gaussian matrices of sides "
            f"1:{sides:.3g} (the paper postulates 1). Norms of simulations agree within 1 %."
        )
    elif update.optimizer == "muon":
        yield (
            "Steps: sqrt(max(1, rows/cols)) times five Newton-Schulz steps ('original' adjustment), Nesterov momentum. "
            f"Corrected factors, measured: squared singular values of {NEWTON_SCHULZ_SQUARE} in the mean, {factor}. "
            "Norms of simulations agree within 8 %. The decay is by the unadjusted lr, as in torch.optim.Muon."
        )


def _course(update: Update, setting: Setting, eta: float) -> Iterator[str]:
    if update.optimizer.startswith("scion"):
        radius = f"{1 / setting.weight_decay:.4g}" if setting.weight_decay else "infinite"
        yield (
            "Scion's lr and decay are the layer's: lr x radius and 1/radius, so the lr that its constructor takes is "
            f"{eta:.4g} and the radius {radius}."
        )
    if setting.corrected:
        yield "The decay argument follows the lr, weight_decay x lr/peak: AdamC (arXiv 2506.02285), ScionC."
    if setting.weight_decay == 0:
        yield "Without decay there is no balance: the norm grows as the square root of the steps."


def _sample_sentence(setting: Setting, sample: Shape) -> str:
    n, d = math.prod(sample), math.prod(setting.shape)
    error = 1 / math.sqrt(2 * n)
    part = (
        "all of the tensor"
        if n == d
        else f"a tensor of {'x'.join(map(str, sample))} in place of {'x'.join(map(str, setting.shape))}"
    )
    scatter = f"a norm scatters by {100 * error:.1g} %"
    return f"Simulated: the optimizer itself on seeded Gaussian gradients, on {part}; {scatter}."
