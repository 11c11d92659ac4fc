"""Reading generation_config.json as transformers does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from specdiag.auditing.reference_process import confinement
from specdiag.auditing.reference_process.failures import OURS, NoModelError, RefusedError, in_a_line, is_newer, version

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel


def refused_generation(model: PreTrainedModel, generation: object) -> str | None:
    """Explain why the content of generation_config.json stops the loader; None where it does not.

    Args:
        model: one that reads it where it can generate.
        generation: the content.
    """
    if not model.can_generate():
        return None
    try:
        _read_generation(generation)
    except RefusedError as error:
        return str(error)
    except NoModelError:
        return None
    return None


def _read_generation(generation: object) -> None:
    """Take the content of generation_config.json as transformers does."""
    from transformers import GenerationConfig

    try:
        GenerationConfig.from_dict(cast("dict[str, Any]", generation))
    except Exception as error:
        is_late = isinstance(generation, dict) and is_newer(cast("dict[str, object]", generation))
        is_ours = isinstance(error, OURS) or bool(confinement.attempts) or is_late
        words = f"transformers {version()} refuses generation_config.json ({in_a_line(error)})"
        raise (NoModelError if is_ours else RefusedError)(words) from error
