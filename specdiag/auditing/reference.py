"""The answer of transformers' own model of a config.json: where it and the files differ."""

from __future__ import annotations

from msgspec import Struct

CHECKS = ("missing_tensor", "missing_optional", "other_shape", "unused_tensor", "dropped_tensor", "config_refused")
"""Checks that the comparison serves."""


class Reference(Struct, frozen=True, kw_only=True):
    """The answer of the process: where transformers' own model and the files differ.

    Names are those of the files where one tensor of them becomes one of the model, else those of the model.
    """

    model: str = ""
    """Class of the model."""
    transformers: str = ""
    """Version."""
    missing: dict[str, tuple[int, ...]] = {}
    """Parameters and persistent buffers that no tensor fills, with their shapes."""
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    """Tensors of another shape, with the stored one and the model's."""
    refused: dict[str, str] = {}
    """Tensors that the loader could not put together, with its words."""
    unused: tuple[str, ...] = ()
    """Tensors that the model does not take."""
    dropped: tuple[str, ...] = ()
    """Those of them in a layer that the model has."""
    refused_generation: str | None = None
    """The words of transformers where it refuses generation_config.json."""
    reason: str | None = None
    """Explains why there is no model; None where there is one."""
    refused_config: str | None = None
    """The words of transformers where config.json itself is why there is none."""
