"""The same run with another decay: same start, data, order and seeds, which is what a comparison needs."""

from __future__ import annotations

from pathlib import Path

import msgspec

from specdiag.errors import UsageError
from specdiag.train.callbacks.rule_names import check_rule_options
from specdiag.train.data.tokenizers import KEPT, NO_TOKENIZER
from specdiag.train.data.tokens import BYTES
from specdiag.train.runs.begin import begin
from specdiag.train.runs.config import RunConfig, load_config
from specdiag.train.runs.overrides import HARMLESS
from specdiag.train.runs.request import Request
from specdiag.train.runs.resume import prepare
from specdiag.train.runs.run import Run


def beside(run: Run, rule: str, folder: Path) -> Run:
    """A run that differs from `run` in its decay alone; one that is there already goes on.

    Args:
        run: as it was prepared.
        rule: a rule without options, such as `uniform`.
        folder: of the other run.

    Raises:
        UsageError: the rule is unknown, or the folder holds something else.
        SourceError: the source is no longer what it was.
    """
    held = held_beside(run, rule, folder)
    config, recipe = run.config, run.config.recipe
    if held is not None:
        planned = held.recipe.steps_total
        return prepare(Request(source=folder, steps_total=recipe.steps_total if recipe.steps_total > planned else None))
    if not config.source:
        return begin(msgspec.structs.replace(recipe, decay=rule, alphadecay={}), folder)
    fresh = config.fresh_optimizer
    settings = {name: v for name, v in recipe.settings.items() if fresh or name in HARMLESS}
    return prepare(
        Request(
            source=Path(config.source), data=recipe.data, out=folder, decay=rule, steps_total=recipe.steps_total,
            block_size=recipe.block_size or None, task=recipe.task, settings=settings, fresh_optimizer=fresh,
            allow_data_shift=True, config=config.model_config or None, layout=config.layout or None,
            tokenizer=_tokenizer(run),
        )
    )  # fmt: skip


def held_beside(run: Run, rule: str, folder: Path) -> RunConfig | None:
    """The configuration of the other run where it is there already.

    Args:
        run: as it was prepared.
        rule: a rule without options.
        folder: of the other run.

    Raises:
        UsageError: the rule is unknown, or the run that is there differs in more than its decay and its length.
    """
    check_rule_options(rule, {})
    held, config = load_config(folder), run.config
    if held is None:
        return None
    wanted = msgspec.structs.replace(config.recipe, decay=rule, alphadecay={}, steps_total=held.recipe.steps_total)
    if (held.recipe, held.source) != (wanted, config.source):
        raise UsageError(f"{folder} holds a run with other settings than {run.folder.name}: move it away")
    return held


def _tokenizer(run: Run) -> str | None:
    """That of the run, which may have been named when it began; None where it has none."""
    if run.config.fingerprint.tokens == BYTES:
        return NO_TOKENIZER
    kept = run.folder / KEPT
    return str(kept) if kept.is_dir() else None
