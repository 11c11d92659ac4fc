"""Every optimizer by name, with what there is to know before choosing it: one table for training, library and docs."""

from __future__ import annotations

import textwrap

from torch import nn, optim
from torch.optim import Optimizer

from specdiag.errors import UsageError
from specdiag.optim.building import adam_like, corrected, muon, scion, sgd_like
from specdiag.optim.method import Method, Options, UpdateRule
from specdiag.optim.optimizers.ada_decay import AdaDecay
from specdiag.optim.optimizers.awd import AWD
from specdiag.optim.optimizers.renormalized_adamw import RenormalizedAdamW
from specdiag.optim.update_rules import ADAM, ADAMW, MUON, SCION, SGD, always
from specdiag.text import checks


def optimizers(name: str, model: nn.Module, **options: object) -> list[Optimizer]:
    """Make the optimizers of a method, over every trained parameter of a model.

    Biases, norms, embeddings and heads that are tied to an embedding get no decay. Scion is the exception: there every
    parameter keeps to the ball of its kind.

    Args:
        name: a name of `METHODS`.
        model: after it was moved and wrapped.
        **options: options of the method, in place of its defaults. `lr` is the peak of the schedule.

    Returns:
        One optimizer, or several for a method such as `muon`; `Combined` makes one of them.

    Raises:
        UsageError: an unknown method or option, or a value out of range.

    Example:
        >>> from torch import nn
        >>> [type(each).__name__ for each in optimizers("adamc", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))]
        ['AdamW']
    """
    checks.one_of("optimizer", name, METHODS)
    checks.instance("model", model, nn.Module, "after it was moved and wrapped")
    method = METHODS[name]
    unknown = next((key for key in options if key not in method.defaults), None)
    if unknown is not None:
        raise UsageError(f"{name} has no option '{unknown}'; it has {', '.join(method.defaults)}")
    for key, value in options.items():
        _check(key, value, method.defaults[key])
    try:
        return method.build(model, {**method.defaults, **options})
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error


def _check(key: str, value: object, default: object) -> None:
    """Raise UsageError unless an option has the type of its default, and is no negative decay."""
    if isinstance(default, bool):
        checks.flag(key, value)
    elif isinstance(default, str):
        checks.text(key, value)
    elif isinstance(default, int):
        checks.whole(key, value)
    elif value is not None or default is not None:
        checks.number(key, value, least=0 if key == "weight_decay" else None)


def markdown() -> str:
    """Write the registry as Markdown, a section for each method."""
    sections: list[str] = []
    for name, method in METHODS.items():
        defaults = ", ".join(
            f"`{key}={f'{value:g}' if isinstance(value, float) else value}`" for key, value in method.defaults.items()
        )
        notes = (f"Source: {method.source}.", f"Defaults: {defaults}.", f"Where sources differ: {method.disagreements}")
        lines = "\n".join(
            textwrap.fill(f"- {note}", 120, subsequent_indent="  ", break_on_hyphens=False) for note in notes
        )
        sections.append(f"### {name}\n\n    {method.formula}\n\n{lines}")
    return "\n\n".join(sections)


_ADAM: Options = {"lr": 1e-3, "weight_decay": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
_SGD: Options = {"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9}
_SCION: Options = {
    "lr": None,
    "weight_decay": 1.0,
    "momentum": None,
    "preset": "nanogpt",
    "orthogonalization": "polar-express",
    "process_group": None,
}

METHODS: dict[str, Method] = {
    "adam": Method(
        "g <- g + L w;  w <- w - lr m^/(sqrt(v^) + eps)",
        "Kingma and Ba 2015 (arXiv 1412.6980); torch.optim.Adam as it is; most tables of AlphaDecay",
        "Decay is part of the gradient and of both moments (L2). It hardly acts where gradients are large. Usual "
        "values of L are 1e-5 to 1e-6 where AdamW has 0.1. AlphaDecay's code decays all parameters; specdiag decays "
        "matrices other than embeddings.",
        {**_ADAM, "weight_decay": 1e-5},
        adam_like(optim.Adam),
        (ADAM,),
    ),
    "adamw": Method(
        "w <- (1 - lr L) w - lr m^/(sqrt(v^) + eps)",
        "Loshchilov and Hutter 2019 (arXiv 1711.05101); torch.optim.AdamW as it is",
        "The paper multiplies decay by the schedule's factor alone, torch by the lr: the same L is a different decay. "
        "torch decays a parameter whose gradient is zero, and skips one without a gradient.",
        _ADAM,
        adam_like(optim.AdamW),
        (ADAMW,),
    ),
    "adamc": Method(
        "AdamW with L_t = L lr_t/lr_max in every matrix but embeddings and heads",
        "Defazio 2025 (arXiv 2506.02285); torch.optim.AdamW with CorrectedDecay",
        "lr_max is the peak of the schedule. kozistr/pytorch_optimizer takes the constructor's lr instead, which a "
        "warm-up may already have scaled. The paper leaves embeddings and biases open; specdiag does not correct them. "
        "Its authors use a larger L than for AdamW.",
        _ADAM,
        corrected(adam_like(optim.AdamW)),
        (ADAMW,),
    ),
    "sgd": Method(
        "d <- momentum d + g + L w;  w <- w - lr d",
        "torch.optim.SGD as it is",
        "Decay is part of the gradient and passes through the momentum (L2). The decoupled SGDW of arXiv 1711.05101 "
        "keeps it out of both.",
        _SGD,
        sgd_like(optim.SGD),
        (SGD,),
    ),
    "sgdc": Method(
        "SGD with L_t = L lr_t/lr_max in every matrix but embeddings and heads",
        "Defazio 2025 (arXiv 2506.02285); torch.optim.SGD with CorrectedDecay",
        "As for adamc. With momentum, torch's SGD spreads the corrected decay over later steps.",
        _SGD,
        corrected(sgd_like(optim.SGD)),
        (SGD,),
    ),
    "renormalized-adamw": Method(
        "w' = (1 - lr L) w;  w'' = w' - lr u;  w <- w'' |w' - lr u_par|/|w''|, u_par the part of u along w'",
        "Chou 2025 (arXiv 2512.08217), algorithm 1",
        "This form is our reconstruction from the paper's text and its reviewers' remarks: the lines of the algorithm "
        "were not readable. It treats matrices only, each parameter as a whole. The paper finds that it makes no "
        "difference.",
        _ADAM,
        adam_like(RenormalizedAdamW),
        (UpdateRule(RenormalizedAdamW, "decoupled", always("adamw-renormalized")),),
    ),
    "scion": Method(
        "m <- (1 - a) m + a g;  w <- (1 - lr L) w - lr radius lmo(m), L = 1",
        "Pethick et al. 2025, LIONS-EPFL/scion; LMO and radius by place of the layer, from the preset",
        "The released constructor has no momentum (a = 1). The authors' runs have a = 0.1, and so do the presets. "
        "There ColNorm is plain by default and the other norms are normalised; here the name says which. Spectral "
        "steps use Newton-Schulz there. The code of arXiv 2512.08217 uses PolarExpress, the default here. An option "
        "of None takes the preset's value.",
        _SCION,
        scion(corrected=False),
        (SCION,),
    ),
    "scionc": Method(
        "Scion with lr L = (lr radius)^2 (2 - a)/(2 a C^2) in all layers but the output",
        "Chou 2025 (arXiv 2512.08217), algorithm 2",
        "`target_norm=None` takes the C^2 that gives L = 1 at the peak. The factor 1/2 is our reconstruction from the "
        "derivation; it agrees with the C^2 of the paper's tables. The author's published code has "
        "L_t = L lr_t/lr_max, which is the same while a and C^2 are constant. Sign and spectral steps repeat about 0.7 "
        "and 0.8 to 0.95 of the momentum that (2 - a)/a predicts. This factor is constant unless a is scheduled. "
        "Schedule C^2 or a with GroupSchedule.",
        {**_SCION, "target_norm": None},
        scion(corrected=True),
        (SCION,),
    ),
    "muon": Method(
        "B <- momentum B + (1 - momentum) g;  w <- (1 - lr L) w - lr 0.2 sqrt(max(rows, cols)) NS5(nesterov B)",
        "Jordan et al. 2024; torch.optim.Muon as it is for hidden matrices, torch.optim.AdamW for all else",
        "`adjust_lr_fn=original` is Jordan's sqrt(max(1, rows/cols)), which needs a different lr than AdamW. The "
        "default here is Moonlight's (arXiv 2502.16982): one lr serves both. Decay uses the lr before that factor. "
        "torch's docs give B <- momentum B + g, but its code averages. Jordan's repository has no decay.",
        {
            "lr": 1e-3,
            "weight_decay": 0.1,
            "momentum": 0.95,
            "adjust_lr_fn": "match_rms_adamw",
            "beta1": 0.9,
            "beta2": 0.95,
        },
        muon,
        (MUON, ADAMW),
    ),
    "awd": Method(
        "SGD with L_t = L r_t;  r_t = 0.1 r_(t-1) + 0.9 |g|/|w|, over all parameters",
        "Ghiasi et al. 2023 (arXiv 2210.00094); reimplementation in hed-ucas/AlphaDecay",
        "The averaging is that of the reimplementation; the paper's own algorithm was not compared. The "
        "reimplementation also decays biases, specdiag does not. Clipping gradients first caps the decay.",
        {"lr": 0.1, "weight_decay": 0.02, "momentum": 0.9},
        sgd_like(AWD),
        (UpdateRule(AWD, "coupled"),),
    ),
    "adadecay": Method(
        "w_i <- w_i - lr d_i - lr L theta_i w_i;  theta_i = 2/(1 + exp(-slope z_i)), z_i = (|g_i| - mean)/std",
        "Nakamura and Hong 2019 (arXiv 1907.08931)",
        "AlphaDecay's tables call another method AdaDecay: one theta for each module, from gradient norms within its "
        "block (ModuleAdaDecay here). slope = 4 is from AlphaDecay's code. We could not confirm that the paper has 4, "
        "nor how it joins the method with momentum.",
        {**_SGD, "slope": 4.0},
        sgd_like(AdaDecay),
        (UpdateRule(AdaDecay, "by weight"),),
    ),
}
