"""An audit in words and as markdown. Names come from untrusted files: nothing in them is printed as markup."""

from __future__ import annotations

from collections import defaultdict

from specdiag.auditing.records import AuditReport, DecayAnswer, Finding
from specdiag.text import markdown
from specdiag.text.names import listed
from specdiag.text.printable import printable

FEW = 5
"""Findings of one check that are listed where not all are asked for."""


_FILES = 8
"""Names of other files that a sentence lists."""


def headline(audit: AuditReport) -> str:
    """Write the verdict in a line."""
    counts = ", ".join(f"{n} {severity}" for severity, n in audit.counts.items() if n) or "no findings"
    against = f" against {printable(str(audit.baseline))}" if audit.baseline is not None else ""
    return f"{audit.verdict.upper()}: {printable(str(audit.source))}{against}: {counts}"


def groups(audit: AuditReport) -> list[tuple[Finding, ...]]:
    """Group the findings by check, in their order."""
    by_check: dict[str, list[Finding]] = defaultdict(list)
    for finding in audit.findings:
        by_check[finding.check].append(finding)
    return [tuple(group) for group in by_check.values()]


def explanation(finding: Finding) -> str:
    """Write why a check matters, and what to do."""
    return f"{finding.check}: {finding.why}. What to do: {finding.advice}."


def coverage(audit: AuditReport) -> list[str]:
    """List the checks that ran, and those that did not and why."""
    covered = audit.coverage
    small_tensors = (
        "; values of norm gains and biases are not seen in a report or an open checkpoint"
        if covered.n_others is None
        else f", and at the values of {covered.n_others} norm gains, biases and other small tensors"
    )
    total = len(covered.checks) + len(covered.not_checked)
    lines = [
        f"Looked at {covered.n_matrices} matrices of {covered.n_tensors} tensors{small_tensors}. "
        f"{len(covered.checks)} of {total} checks were made."
    ]
    unread = [] if covered.files else [audit.source.unread]
    unread += [f"Baseline: {audit.baseline.unread}"] if audit.baseline is not None and audit.baseline.unread else []
    lines += [printable(sentence) for sentence in (*_other_files(audit), *unread) if sentence]
    by_reason: dict[str, list[str]] = defaultdict(list)
    for check, reason in covered.not_checked.items():
        by_reason[reason].append(check)
    if by_reason:
        reasons = (f"{_collapsed(checks)} ({printable(reason)})" for reason, checks in by_reason.items())
        lines.append(f"Not checked: {'; '.join(reasons)}.")
    return [*lines, *(f"Note: {printable(note)}" for note in covered.notes)]


def _other_files(audit: AuditReport) -> list[str]:
    """Say what was done with the weight files beside those of the model, those of one treatment together."""
    by_treatment: dict[str, list[str]] = defaultdict(list)
    for name, done in audit.coverage.files.items():
        by_treatment[done].append(name)
    return [f"Other weight files, {done}: {listed(names, _FILES)}." for done, names in by_treatment.items()]


def decay(answer: DecayAnswer) -> list[str]:
    """Write the answer on a stated decay, with its ranges and assumptions."""
    stated = f"weight decay {answer.weight_decay:g} at lr {answer.lr:g}"
    stated += f" over {answer.steps} steps" if answer.steps is not None else ""
    stated += f" ({answer.lr_shape} lr)" if answer.lr_shape is not None else ""
    start = "weights that started in balance" if answer.initial_rms is None else f"a start at {answer.initial_rms:g}"
    sizes = "" if answer.rms_median is None else (
        f" The weights of {answer.n_matrices} matrices of attention and MLP have a root mean square of "
        f"{answer.rms_median:.3g} (quartiles {answer.rms_low:.3g} to {answer.rms_high:.3g}); "
        f"{answer.expected_low:.3g} to {answer.expected_high:.3g} is expected of {start}."
    )  # fmt: skip
    verdict = {
        "consistent": f"The weights are consistent with {stated}",
        "inconsistent": f"The weights are inconsistent with {stated}",
        "cannot tell": f"Whether the weights fit {stated} cannot be told",
    }[answer.answer]
    return [f"{verdict}: {answer.reason}.{sizes}", f"This assumes {'; '.join(answer.assumptions)}."]


def value(finding: Finding) -> str:
    """Write the value of a finding for a person."""
    return f"{finding.value:.4g}" if isinstance(finding.value, float) else printable(str(finding.value))


def limit(finding: Finding) -> str:
    """Write the threshold of a finding, nothing where it has none."""
    return "" if finding.threshold is None else f"{finding.threshold:g}"


def to_markdown(audit: AuditReport, *, all_rows: bool = False) -> bytes:
    """Write the audit as markdown, for a pull request or a job summary.

    Args:
        audit: as `audit` returned it.
        all_rows: list every finding of a check, not only the first `FEW`.
    """
    lines = [f"## specdiag audit: {markdown.text(headline(audit))}", ""]
    for group in groups(audit):
        first = group[0]
        lines += [f"### {first.severity}: {first.check} ({len(group)})", ""]
        lines += [f"{markdown.text(first.why)}. **What to do:** {markdown.text(first.advice)}.", ""]
        lines += ["| module | value | threshold |", "| --- | --- | --- |"]
        shown = group if all_rows else group[:FEW]
        lines += [
            f"| {markdown.code(f.module or 'the checkpoint')} | {markdown.text(value(f))} | {limit(f)} |" for f in shown
        ]
        if len(shown) < len(group):
            lines.append(f"| and {len(group) - len(shown)} more | | |")
        lines.append("")
    sentences = [*(decay(audit.decay) if audit.decay is not None else ()), *coverage(audit)]
    return "\n".join([*lines, *(line for s in sentences for line in (markdown.text(s), ""))]).encode()


def _collapsed(checks: list[str]) -> str:
    """List ids of checks. Several checks against a baseline, and no others, are written as `baseline_*`."""
    return "baseline_*" if len(checks) > 2 and all(c.startswith("baseline_") for c in checks) else ", ".join(checks)
