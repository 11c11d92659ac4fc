"""An audit in words and as markdown. Names come from untrusted files: nothing in them is printed as markup."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable

from specdiag.auditing import alarm_wording, token_wording
from specdiag.auditing.not_run import collapsed, not_run
from specdiag.auditing.records import (
    NO_CONFIG,
    SELECTION,
    SEVERITIES,
    AuditReport,
    Coverage,
    DecayAnswer,
    Excused,
    Finding,
)
from specdiag.auditing.thresholds import Check, default_checks
from specdiag.text import markdown
from specdiag.text.counts import counted
from specdiag.text.names import listed
from specdiag.text.places import stacks
from specdiag.text.printable import printable

FEW = 5
"""Findings of one check that are listed where not all are asked for."""
_FILES = 8
"""Names of other files that a sentence lists."""


def headline(audit: AuditReport) -> str:
    """Write the verdict in a line, with the checks that decide it."""
    checks = listed(dict.fromkeys(f.check for f in audit.findings if f.severity == audit.verdict), 2)
    nouns = {"fail": "failure", "warn": "warning"}
    counted_ = {s: counted(n, nouns[s]) if s in nouns else f"{n} {s}" for s, n in audit.counts.items() if n}
    reasons = (f"{told} ({checks})" if severity == audit.verdict else told for severity, told in counted_.items())
    n_excused = sum(len(excused.findings) for excused in audit.coverage.excused)
    counts = ", ".join([*reasons, *([f"{n_excused} excused"] if n_excused else [])]) or "no findings"
    against = f" against {printable(str(audit.baseline))}" if audit.baseline is not None else ""
    verdict = f"{audit.verdict.upper()}{' (selection)' if is_selection(audit.coverage) else ''}"
    return f"{verdict}: {printable(str(audit.source))}{against}: {counts}{reservation(audit.coverage)}"


def reservation(covered: Coverage) -> str:
    """Write what a verdict does not rest on: transformers' own model, or the code of the repository."""
    if is_selection(covered):
        number = counted(covered.n_matrices, "selected matrix", "selected matrices")
        alone = f", in {number}: missing tensors were not looked for"
    elif covered.names_alone is not None:
        alone = f", by names and shapes alone ({printable(covered.names_alone)})"
    else:
        alone = ""
    return alone + (", without the repository's own code (auto_map)" if covered.own_code else "")


def is_selection(covered: Coverage) -> bool:
    """Tell whether only a part of the matrices was asked for.

    Args:
        covered: the coverage of an audit.
    """
    return SELECTION in (covered.names_alone, covered.not_checked.get("missing_matrix"))


def groups(audit: AuditReport) -> list[tuple[Finding, ...]]:
    """Group the findings by check, in their order, those of the whole checkpoint first among equals."""
    by_check: dict[str, list[Finding]] = defaultdict(list)
    for finding in audit.findings:
        by_check[finding.check].append(finding)
    found = [tuple(group) for group in by_check.values()]
    return sorted(found, key=lambda group: (SEVERITIES.index(group[0].severity), group[0].module is not None))


def explanations(found: Iterable[tuple[Finding, ...]]) -> list[str]:
    """Write why checks matter, and what to do, those that matter alike in one sentence.

    Args:
        found: the findings, as `groups` gives them.
    """
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for group in found:
        alike[group[0].why, group[0].advice].append(group[0].check)
    return [f"{', '.join(checks)}: {why}. What to do: {advice}." for (why, advice), checks in alike.items()]


def summary(group: tuple[Finding, ...]) -> str:
    """Write many findings of one check in a line: where they are, the lowest and the highest value, or the first.

    Args:
        group: findings of a check, two or more.
    """
    where = stacks(finding.module for finding in group if finding.module is not None)
    return (f"{where}: " if where else "") + _values(group)


def _values(group: tuple[Finding, ...]) -> str:
    numbers = [(f.value, f) for f in group if not isinstance(f.value, str)]
    check = default_checks().get(group[0].check)
    if len(numbers) == len(group) and check is not None:
        low, high = (pick(numbers, key=lambda pair: pair[0]) for pick in (min, max))
        if value(low[1]) != value(high[1]):
            ends = " to ".join(_in_metric(check, number, _plain) for number, _ in (low, high))
            least, most = (printable(f.module or "the checkpoint") for _, f in (low, high))
            return f"{re.sub(r'{%?}', ends, check.phrase)} (least {least}, most {most})"
    same = len({value(f) for f in group}) == 1
    first = group[0]
    return value(first) if same else f"such as {value(first)} ({printable(first.module or 'the checkpoint')})"


def is_told_in_one(group: tuple[Finding, ...]) -> bool:
    """Tell whether a check has so many findings that a line sums them up.

    Args:
        group: findings of a check.
    """
    return len(group) > FEW + 1


def coverage(audit: AuditReport, *, whole: bool = True) -> list[str]:
    """List the checks that ran, and those that did not and why.

    Args:
        audit: as `audit` returned it.
        whole: False to count the checks that did not run where many have one reason.
    """
    unread = [] if audit.coverage.files else [audit.source.unread]
    unread += [f"Baseline: {audit.baseline.unread}"] if audit.baseline is not None and audit.baseline.unread else []
    return extent(audit.coverage, unread, whole=whole)


def extent(covered: Coverage, unread: Iterable[str] = (), *, whole: bool = True) -> list[str]:
    """List the checks that ran, and those that did not and why.

    Args:
        covered: the coverage of an audit.
        unread: sentences on files that were not looked into.
        whole: False to count the checks that did not run where many have one reason.
    """
    small_tensors = (
        "; values of norm gains and biases are not seen in a report or an open checkpoint"
        if covered.n_others is None
        else f", and at the values of {covered.n_others} norm gains, biases and other small tensors"
    )
    total = len(covered.checks) + len(covered.not_checked)
    lines = [
        f"Looked at {covered.n_matrices} matrices of {counted(covered.n_tensors, 'tensor')}{small_tensors}. "
        f"{len(covered.checks)} of {total} checks ran."
    ]
    lines += [excuse(excused) for excused in covered.excused]
    lines += [printable(sentence) for sentence in (*_other_files(covered), *unread) if sentence]
    if missing := not_run(covered.not_checked, whole=whole):
        lines.append(missing)
    lines += [f"Note: {printable(note)}" for note in covered.notes]
    if lacking := [check for check, reason in covered.not_checked.items() if reason == NO_CONFIG]:
        named = collapsed(lacking, whole=whole)
        lines.append(f"Needs the checkpoint itself: {named}, and the values of norm gains and biases.")
    return lines


def excuse(excused: Excused) -> str:
    """Write the findings that a pattern excuses with its reason, or that it excuses none."""
    place = f"'{printable(excused.pattern)}' in [{excused.check}.ignore]"
    if not excused.findings:
        return f"Nothing to excuse: {place} matches no finding."
    found = listed((f"{printable(f.module or '')} ({f.severity}, {value(f)})" for f in excused.findings), FEW)
    return f"Excused by {place}: {found}. Reason given: {printable(excused.reason).rstrip('.')}."


def _other_files(covered: Coverage) -> list[str]:
    """Say what was done with the weight files beside those of the model, those of one treatment together."""
    by_treatment: dict[str, list[str]] = defaultdict(list)
    for name, done in covered.files.items():
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
    """Write the value of a finding with its unit, such as "12 % of the rows zero"."""
    if isinstance(finding.value, str):
        return printable(finding.value)
    check = default_checks().get(finding.check)
    if check is None:
        return _plain(finding.value)
    written, bound = _in_metric(check, finding.value, _plain), finding.threshold
    if bound is not None and finding.value != bound and written == _in_metric(check, bound, _plain):
        written = f"just {'above' if finding.value > bound else 'below'} {written}"
    return re.sub(r"\{%?\}", written, check.phrase)


def expected(finding: Finding) -> str:
    """Write the value that was expected, such as "at most 5 %"; nothing where every observation is a finding."""
    if finding.threshold is None:
        return ""
    check = default_checks().get(finding.check)
    if check is None or check.threshold is None:  # the number of config.json
        return _plain(finding.threshold)
    if finding.threshold == 0 and check.fires == "above":
        return "none"
    return f"at {'most' if check.fires == 'above' else 'least'} {limit(check, finding.threshold)}"


def limit(check: Check, number: float) -> str:
    """Write a threshold in the metric of a check, a share in percent.

    Args:
        check: the check.
        number: a threshold.
    """
    return _in_metric(check, number, "{:g}".format)


def _in_metric(check: Check, number: float, written: Callable[[float], str]) -> str:
    return f"{written(100 * number)} %" if "{%}" in check.phrase else written(number)


def sentence(finding: Finding) -> str:
    """Write a finding in a line: where, its value, the expected one, why it matters, what to do."""
    where = printable(finding.module or "the checkpoint")
    limit = f", expected {expected(finding)}" if expected(finding) else ""
    return f"{where}: {value(finding)}{limit}. {capitalised(finding.why)}. What to do: {finding.advice}."


def capitalised(text: str) -> str:
    """Begin a sentence of the table of checks with a capital letter."""
    return text[:1].upper() + text[1:]


def to_markdown(audit: AuditReport, *, all_rows: bool = False) -> bytes:
    """Write the audit as markdown, for a pull request or a job summary.

    Args:
        audit: as `audit` returned it.
        all_rows: list every finding of a check, also where it has many.
    """
    lines = [f"## specdiag audit: {markdown.text(headline(audit))}", ""]
    for group in groups(audit):
        first = group[0]
        lines += [f"### {first.severity}: {first.check} ({len(group)})", ""]
        lines += [f"{markdown.text(first.why)}. **What to do:** {markdown.text(first.advice)}.", ""]
        lines += ["| module | value | expected |", "| --- | --- | --- |"]
        if is_told_in_one(group) and not all_rows:
            lines += [f"| {len(group)} findings | {markdown.text(summary(group))} | {expected(first)} |", ""]
            continue
        lines += [
            f"| {markdown.code(f.module or 'the checkpoint')} | {markdown.text(value(f))} | {expected(f)} |"
            for f in group
        ]
        lines.append("")
    lines += [line for table in audit.tokens for line in token_wording.to_markdown(table)]
    lines += alarm_wording.to_markdown(audit)
    sentences = [*(decay(audit.decay) if audit.decay is not None else ()), *coverage(audit, whole=all_rows)]
    return "\n".join([*lines, *(line for s in sentences for line in (markdown.text(s), ""))]).encode()


def error_to_markdown(source: str, error: str) -> bytes:
    """Write as markdown that a source could not be audited, in the place of its audit.

    Args:
        source: as it was typed.
        error: why, in a sentence.
    """
    return f"## specdiag audit: NOT AUDITED: {markdown.text(source)}\n\n{markdown.text(error)}.\n".encode()


def _plain(number: float) -> str:
    """Write an integer in full, as a size of config.json is one, and any other number with three digits."""
    if abs(number) >= 1e9:
        return f"{number:.3g}"
    if float(number).is_integer():
        return f"{number:.0f}"
    return f"{float(f'{number:.3g}'):.0f}" if abs(number) >= 1000 else f"{number:.3g}"
