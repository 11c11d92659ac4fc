"""The check whether a file is one process's slice of a model, given as if it were the model."""

from __future__ import annotations

import re
from collections.abc import Iterator

from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation

_RANK = re.compile(r"(consolidated\.\d+\.\w+|mp_rank_\d+.*|(.*[-_.])?(tp[-_]?)?rank[-_]?\d+([-_.].*)?)")
"""Names of files, or of their folders, that count processes."""
_META = re.compile(r"(.*\.)?layers\.\d+\.attention\.wo\.weight")


def sliced(subject: Subject) -> Iterator[Observation]:
    """Find an attention that writes the model's whole width and reads a part of it, in a file that counts processes.

    By its shape alone it may be a model whose heads are narrower than its width. Under Meta's names a token embedding
    that is narrower than the model says as much as the file's name: it is cut along its columns.

    Args:
        subject: the subject of the audit.
    """
    report = subject.report
    widths = {s.shape[0] for s in report.skipped if len(s.shape) == 1 and "norm" in s.name}
    outputs = [r for r in report if r.role == "o" and r.part is None and r.cols < r.rows and r.rows in widths]
    if not outputs or any(r.role == "o" and r.cols >= r.rows for r in report):
        return
    width, first = outputs[0].rows, outputs[0]
    counts = any(_RANK.fullmatch(part) for name in report.source.files for part in name.split("/"))
    is_cut = any(r.role == "embed" and r.cols < width for r in report) and bool(_META.fullmatch(first.name))
    if counts or is_cut:
        yield Observation("slice", first.key, f"{first.rows}x{first.cols}, of a width of {width}")
