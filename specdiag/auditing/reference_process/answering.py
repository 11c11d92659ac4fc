"""The answers of the process: where transformers' own model and the files differ, and whether the model runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from specdiag.auditing.reference_process.building import build, load_transformers
from specdiag.auditing.reference_process.confinement import confine, lock
from specdiag.auditing.reference_process.failures import NoModelError, RefusedError, in_a_line, is_newer, version
from specdiag.auditing.reference_process.generation import refused_generation
from specdiag.auditing.reference_process.loading import compare

__all__ = ["answers", "confine"]


def answers(request: dict[str, object]) -> Iterator[dict[str, object]]:
    """Answer one request.

    Args:
        request: `config`, a checked copy of config.json; the `dtype` that it states; `whole`, True where the copy has
            every entry; `own_code`, True where it has an auto_map; `tensors`, the shapes of the files by name;
            `generation`, generation_config.json if there.

    Yields:
        The fields of `Reference`, and where there is a model those of its `Trial`.
    """
    try:
        load_transformers()
        lock()
        config = cast("dict[str, object]", request["config"])
        model = build(config, request["dtype"], whole=bool(request["whole"]), own_code=bool(request["own_code"]))
        refused = refused_generation(model, request["generation"]) if "generation" in request else None
        try:
            found = compare(model, cast("dict[str, list[int]]", request["tensors"]))
        except Exception as error:
            raise NoModelError(f"transformers {version()} could not load its names ({in_a_line(error)})") from error
    except RefusedError as error:
        yield {"reason": str(error), "refused_config": str(error)}
        return
    except NoModelError as error:
        yield {"reason": str(error)}
        return
    yield {"transformers": version(), "refused_generation": refused, **found}
    from specdiag.auditing.reference_process.running import trial

    is_whole, is_late = bool(request["whole"]), is_newer(config)
    reason = "a later version of transformers wrote config.json" if is_late else "a part of config.json is left out"
    yield trial(model, config) if is_whole and not is_late else {"not_run": reason}
