"""The sources of `specdiag audit`: what is asked of all of them, refused before the work, and the audit of each."""

from __future__ import annotations

from collections.abc import Container, Generator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from specdiag.errors import SourceError, UsageError
from specdiag.system import interrupts
from specdiag.text.printable import printable

from . import options, output
from .sharing import Given

if TYPE_CHECKING:
    from specdiag.auditing.outcomes import Outcome


def check(sources: Sequence[str], baseline: str | None, given: Given, *, tokens: int, alarms: bool) -> None:
    """Raise UsageError where there is no source, or a saved report comes with options that compute anew.

    Args:
        sources: as they were typed.
        baseline: likewise; a part is of a checkpoint among them.
        given: the shared options.
        tokens: number of tokens to list, for which a checkpoint is needed.
        alarms: whether the blocks are looked at, likewise.
    """
    from specdiag.report import is_report

    if not sources:
        raise UsageError("name a SOURCE to audit, a list of them with --from, or a check with --explain")
    for source in sources:
        if is_report(Path(source)):
            has_parts = baseline is not None and not is_report(Path(baseline))
            others = [name for name, asked in (("tokens", tokens), ("alarms", alarms)) if asked]
            given.require_checkpoint(source, others=others, without=("part",) if has_parts else ())


def check_directions(path: Path, sources: Sequence[str], *, alarms: bool) -> None:
    """Raise UsageError where the directions of --save-directions could not be found, or not be written.

    Args:
        path: the file.
        sources: as they were typed.
        alarms: whether directions are looked for.
    """
    from specdiag.auditing.direction_file import check_target

    if not alarms:
        raise UsageError("--save-directions needs --alarms, which finds them")
    if len(sources) > 1:
        raise UsageError(f"--save-directions takes one SOURCE, not {len(sources)}: each has directions of its own")
    check_target(path)


def require_location(sources: Sequence[str]) -> None:
    """Raise UsageError where a finding of a source would have no file in the repository."""
    from specdiag.auditing.locations import inside, repository_root
    from specdiag.checkpoint.opening import is_on_hub
    from specdiag.checkpoint.source import expanded

    root = repository_root(Path())
    for source in sources:
        try:
            is_remote = is_on_hub(source)
            lies_outside = is_remote or inside(expanded(source), root) is None
        except (SourceError, UsageError):  # it will be told when it is read
            continue
        if lies_outside:
            place = f"is a model of the hub, and no path in {root}" if is_remote else f"lies outside of {root}"
            raise UsageError(
                f"'{printable(source)}' {place}: results need a file there; "
                "name the one that stands for the model with --sarif-location"
            )


def audit_each(
    sources: Sequence[str], asked: options.Arguments, given: Given, listed: Container[str] = ()
) -> Generator[Outcome]:
    """Audit the sources one after the other, and go on after one that cannot be audited.

    Args:
        sources: as they were typed.
        asked: arguments of the library's `audit`, but for those of the analysis.
        given: the shared options.
        listed: those that stand in a list.

    Raises:
        UsageError: there is one source, and what was asked of it makes no sense.
    """
    asked = with_kept_baseline(asked)
    for done, source in enumerate(sources):
        try:
            outcome = audit_one(source, asked, given, listed=source in listed, alone=len(sources) == 1)
        except KeyboardInterrupt:
            told = (
                f"{done} of {len(sources)} sources were audited, and nothing was saved"
                if done
                else "nothing was audited"
            )
            output.talk(f"interrupted: {told}", "yellow")
            output.leave()
        yield outcome


def with_kept_baseline(asked: options.Arguments) -> options.Arguments:
    """Let a checkpoint as the baseline be read once for all sources.

    Args:
        asked: arguments of the library's `audit`.
    """
    from specdiag.auditing.baselines import KeptBaseline
    from specdiag.report import is_report

    baseline = asked["baseline"]
    if baseline is None or is_report(Path(baseline)):
        return asked
    return asked | {"baseline": KeptBaseline(baseline)}


def audit_one(source: str, asked: options.Arguments, given: Given, *, listed: bool, alone: bool = False) -> Outcome:
    """Audit a source. An error is printed, and is an outcome too.

    Args:
        source: as it was typed.
        asked: arguments of the library's `audit`, but for those of the analysis, as `with_kept_baseline` gives them.
        given: the shared options.
        listed: True where it stands in a list.
        alone: True where it is the only one.

    Raises:
        KeyboardInterrupt: a signal came, whatever a library made of it.
        UsageError: it is the only source, and what was asked of it makes no sense.
    """
    from specdiag.auditing.outcomes import Outcome

    try:
        return _audit(source, asked, given, listed=listed)
    except Exception as error:
        if interrupts.any_received():
            raise KeyboardInterrupt from error
        if isinstance(error, UsageError) and alone:
            raise
        message, code = output.survived(error)
        output.fault(message if source in message else f"{source}: {message}")
        return Outcome(source, error=message, code=code)


def _audit(source: str, asked: options.Arguments, given: Given, *, listed: bool) -> Outcome:
    from specdiag.auditing.audit import audit
    from specdiag.auditing.baselines import KeptBaseline
    from specdiag.auditing.outcomes import Outcome
    from specdiag.report import is_report

    path, baseline = Path(source), asked["baseline"]
    report = path if is_report(path) else None
    if report is not None and not isinstance(baseline, KeptBaseline):
        return Outcome(source, audit(source, **asked), report=report)
    from .progress import analysis_bar

    analysis = given.analysis() | (_streaming(source) if listed and report is None else {})
    with analysis_bar() as bar, _to_download(source) if analysis.get("stream") and listed else nullcontext():
        return Outcome(source, audit(source, **asked, **analysis, progress=bar), report=report)


def _streaming(source: str) -> options.Arguments:
    """Models of a list are streamed from the hub, or they would fill the disk; offline its cache is all there is."""
    from huggingface_hub import constants

    from specdiag.checkpoint.opening import is_on_hub

    return {"stream": is_on_hub(source) and not constants.HF_HUB_OFFLINE}


@contextmanager
def _to_download(source: str) -> Generator[None]:
    """Say of a model that cannot be streamed how it is audited, where nobody asked for streaming."""
    from specdiag.checkpoint.stream import NotStreamedError

    try:
        yield
    except NotStreamedError as error:
        raise SourceError(
            f"{source} is streamed as part of a list, and has weights that are no safetensors: "
            "name it as a SOURCE, which downloads it"
        ) from error


def require_alone(ctx: typer.Context, sources: list[str]) -> None:
    """Raise UsageError where `--explain` comes with what it would ignore."""
    others = [n for n in ctx.params if n not in ("sources", "explain", "thresholds") and options.is_given(ctx, n)]
    if sources or others:
        raise UsageError(f"--explain audits nothing: leave out {options.listed(others) if others else 'the SOURCE'}")
