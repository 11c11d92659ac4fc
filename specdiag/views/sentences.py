"""The numbers of a report in sentences that claim no more than they show."""

from __future__ import annotations

from collections import defaultdict

from specdiag.decay.targets import DEFAULT_ROLES
from specdiag.records import Contrast, LawName, ModuleRecord, Summary
from specdiag.spectra.limits import MIN_EIGENVALUES, MIN_TESTED_POINTS
from specdiag.text.counts import counted
from specdiag.text.names import listed

_LEVEL = 0.05
"""Largest p-value of a difference that is called clear."""
KS_LIMIT = 0.1
"""Largest distance (KS) of a tail that may be called a power law."""
_LAWS: dict[LawName, str] = {
    "power-law": "a power law",
    "truncated-power-law": "a truncated power law",
    "exponential": "an exponential",
    "lognormal": "a lognormal",
    "mp-bulk": "a Marchenko-Pastur bulk with spikes",
}


def coverage(summary: Summary) -> str:
    """Write how much of the checkpoint was analysed."""
    share = 100 * summary.analysed_parameters / summary.n_parameters if summary.n_parameters else 0.0
    n_skipped = sum(summary.skipped.values())
    text = (
        f"{counted(summary.n_matrices, 'matrix', 'matrices')} with {summary.analysed_parameters / 1e6:.2f} M of "
        f"{summary.n_parameters / 1e6:.2f} M parameters ({share:.1f} %) from {counted(summary.n_tensors, 'tensor')}"
    )
    if n_skipped:
        reasons = ", ".join(f"{n} ({reason})" for reason, n in summary.skipped.items())
        text += f". Left out: {reasons}"
    return text + "."


def left_over(summary: Summary) -> list[str]:
    """Count the matrices that no rule knows and those that a decay plan leaves alone, where there are any.

    Args:
        summary: of the report.
    """
    said: list[str] = []
    if n := len(summary.unrecognised):
        names = f"{n} {'matrix has a name' if n == 1 else 'matrices have names'} that no rule knows"
        said.append(f"{names}, analysed as 'other' (a role map names them): {listed(summary.unrecognised, 5)}.")
    roles = [f"{role.n} {role.role}" for role in summary.roles if role.role not in DEFAULT_ROLES]
    n = sum(role.n for role in summary.roles if role.role not in DEFAULT_ROLES)
    if n:
        verb = "takes" if n == 1 else "take"
        said.append(f"{n} of {summary.n_matrices} matrices {verb} no part in decay plans: {', '.join(roles)}.")
    return said


def metrics(summary: Summary) -> str:
    """Write the mean and the median of each metric over all matrices.

    Args:
        summary: of the report.
    """
    values = (
        f"{name} {m.mean:.4g} ({m.median:.4g}){'' if m.n == summary.n_matrices else f' of {m.n}'}"
        for name, m in summary.metrics.items()
    )
    return f"{counted(summary.n_matrices, 'matrix', 'matrices')}, mean (median): {', '.join(values) or 'no metric'}"


def contrast(summary: Summary) -> list[str]:
    """Compare attention with MLP: the raw exponent beside random matrices, then both ways to take the shape out.

    Args:
        summary: of the report; a basis that it lacks is left out.
    """
    by_basis = {c.basis: c for c in summary.contrasts if c.attention == "all"}
    raw, square, rho = (by_basis.get(basis) for basis in ("alpha", "square_alpha", "rho"))
    sentences: list[str] = []
    if raw is not None:
        sentences.append(
            f"By alpha, attention is heavier-tailed than MLP in {raw.n_positive} of {raw.n_layers} layers "
            f"(median difference {raw.difference:+.2f}); {_raw_verdict(raw)}"
        )
    if square is not None:
        sentences.append(f"With the shapes taken out: {_shape_free_verdict(square, rho)}")
    return sentences


def contrast_answer(summary: Summary) -> str | None:
    """Say in a few words whether attention or MLP is heavier-tailed with the shapes taken out.

    Args:
        summary: of the report.

    Returns:
        The answer; None where the model lacks one of them.
    """
    by_basis = {c.basis: c for c in summary.contrasts if c.attention == "all"}
    square = by_basis.get("square_alpha")
    return None if square is None else _shape_free_answer(square, by_basis.get("rho"))


def _raw_verdict(c: Contrast) -> str:
    if c.random_difference is None:
        return "there is no null to hold it against, so it is no evidence."
    random = f"random matrices of the same shapes: {c.random_n_positive} of {c.n_layers} ({c.random_difference:+.2f})."
    explained = c.random_n_positive == c.n_layers and c.difference > 0
    return f"{random} The shapes alone give this ordering, so it is no evidence." if explained else random


def _shape_free_verdict(square: Contrast, rho: Contrast | None) -> str:
    numbers = _in_numbers(square) if rho is None else f"{_in_numbers(square)}; {_in_numbers(rho)}"
    return f"{_shape_free_answer(square, rho)}. {numbers}."


def _shape_free_answer(square: Contrast, rho: Contrast | None) -> str:
    if rho is None:
        return "no verdict, for this tail has no rho to hold square_alpha against"
    least = 2.0 ** (1 - square.n_layers)
    if least > _LEVEL:
        return f"{square.n_layers} layers are too few to tell, p cannot fall below {least:.2g}"
    clear = [is_clear(square), is_clear(rho)]
    if not any(clear):
        return f"no clear difference over {square.n_layers} layers"
    if all(clear) and (square.difference > 0) == (rho.difference > 0):
        return f"{_heavier(square)} is heavier-tailed by square_alpha and by rho (layers taken as independent)"
    by = [
        f"{_heavier(c)} is heavier-tailed" if is_clear else "there is no clear difference"
        for c, is_clear in zip((square, rho), clear, strict=True)
    ]
    return f"no answer, the two measures disagree: by square_alpha {by[0]}, by rho {by[1]}"


def _heavier(c: Contrast) -> str:
    return "attention" if c.difference > 0 else "MLP"


def is_clear(c: Contrast) -> bool:
    """Tell whether a difference between attention and MLP is clear."""
    return not c.low <= 0 <= c.high and c.p <= _LEVEL


def _in_numbers(c: Contrast) -> str:
    return (
        f"{c.basis}: MLP - attention {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}], above 0 in {c.n_positive} of "
        f"{c.n_layers} layers, p = {c.p:.2g}"
    )


def balance(summary: Summary) -> list[str]:
    """Write how far the exponents of attention and MLP lie apart, which AlphaDecay sets out to reduce."""
    if summary.balance_sd is None or not {"attention", "mlp"} <= {r.family for r in summary.roles}:
        return []
    return [
        f"Balance: square_alpha of attention and MLP matrices has a standard deviation of {summary.balance_sd:.3f} "
        f"and a range of {summary.balance_range:.3f}."
    ]


def tails(records: tuple[ModuleRecord, ...]) -> list[str]:
    """Write how many of the fitted tails lie far from a power law."""
    distances = [r.ks for r in records if r.ks is not None]
    far = sum(d > KS_LIMIT for d in distances)
    if not far:
        return []
    return [
        f"{far} of {len(distances)} spectra are not power laws (KS distance above {KS_LIMIT}). Read their alpha as a "
        "measure of spread."
    ]


def laws(summary: Summary) -> list[str]:
    """Write which law the tails of each role follow by the fit test, and how far to trust that.

    Args:
        summary: of the report; nothing is written where the test was not asked for.
    """
    tested = [r for r in summary.laws if r.n]
    sentences: list[str] = []
    if tested:
        best: dict[LawName, list[str]] = defaultdict(list)
        open_roles = [r.role for r in tested if len(r.candidates) > 1]
        for r in tested:
            if len(r.candidates) == 1:
                best[r.candidates[0]].append(r.role)
        parts = [f"{_LAWS[law]} fits best in {', '.join(roles)}" for law, roles in best.items()]
        if open_roles:
            parts.append(f"the best laws are not told apart in {', '.join(open_roles)}")
        sentences = [
            f"Fit test: {sum(r.n_not_power_law for r in tested)} of {sum(r.n for r in tested)} tails differ from a "
            f"power law. Over all matrices of a role {'; '.join(parts)}.",
            "Eigenvalues are not independent, so the p-values behind the fit test are not calibrated.",
        ]
    if untested := sum(r.n_untested for r in summary.laws):
        sentences.append(
            f"Not tested: {untested} of {summary.n_matrices} matrices, which have no exponent or fewer than "
            f"{MIN_TESTED_POINTS} eigenvalues in the tail."
        )
    return sentences


def few(records: tuple[ModuleRecord, ...]) -> list[str]:
    """Write how many spectra are too short for an exponent. Updates, which are short by their rank, count apart."""
    short = [r for r in records if r.status == "too_few"]
    if not short:
        return []
    updates, whole = list[ModuleRecord](), list[ModuleRecord]()
    for r in short:
        (updates if r.n_eigenvalues < min(r.rows, r.cols) * r.n_slices else whole).append(r)
    return [
        f"{len(group)} of {len(records)} {of} {'has' if len(group) == 1 else 'have'} {what} {MIN_EIGENVALUES}: "
        "stable rank and norms, no exponent."
        for what, of, group in (
            ("a rank below", "updates", updates),
            ("fewer singular values than", "matrices", whole),
        )
        if group
    ]


def traps(records: tuple[ModuleRecord, ...]) -> list[str]:
    """Write which matrices keep a spike when their entries are permuted."""
    tested = [r for r in records if r.rand_spikes is not None]
    if not tested:
        return []
    names = [r.key for r in tested if r.rand_spikes]
    if not names:
        return [f"With their entries permuted none of {len(tested)} matrices keeps a spike: no correlation traps."]
    return [
        f"With their entries permuted {len(names)} of {len(tested)} matrices keep a spike, from a few huge entries or "
        f"a mean that is not zero (correlation traps): {listed(names)}"
    ]


def missing_numbers(records: tuple[ModuleRecord, ...]) -> list[str]:
    """List the matrices whose numbers are missing, by name, grouped by the cause."""
    meanings = {
        "nonfinite": "not computed for NaN or infinite values",
        "failed": "not read or not solved",
        "zero": "zero everywhere",
        "low_rank": "without alpha, of less rank than the tail needs",
        "degenerate": "without alpha, all eigenvalues equal",
    }
    sentences: list[str] = []
    for status, meaning in meanings.items():
        names = [r.key for r in records if r.status == status]
        if names:
            sentences.append(f"{len(names)} {'matrix' if len(names) == 1 else 'matrices'} {meaning}: {listed(names)}")
    return sentences
