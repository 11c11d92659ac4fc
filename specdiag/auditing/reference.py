"""The answer of transformers' own model of a config.json: where it and the files differ."""

from __future__ import annotations

from msgspec import Struct

CHECKS = (
    "missing_tensor", "missing_optional", "other_shape", "unused_tensor", "dropped_tensor", "config_refused",
    "does_not_run",
)  # fmt: skip
"""Checks that the comparison serves."""


class Fault(Struct, frozen=True, kw_only=True):
    """An entry of config.json that stops a forward pass."""

    path: str
    """Its key, with those of the sections above it."""
    stated: str
    """Value in config.json, as JSON."""
    usual: str | None
    """Value with which the forward pass ends: transformers' default, or a bound; None where the entry has to go."""


class Trial(Struct, frozen=True, kw_only=True):
    """The answer of a forward pass without values."""

    stopped: str | None = None
    """The error that ends it before its end, where transformers' default model of the type has none."""
    faults: tuple[Fault, ...] = ()
    """Entries each of which alone stops it: the first, or several where sizes do not fit each other."""
    not_run: str | None = None
    """Explains why nothing is known; None where something is."""


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
    trial: Trial = Trial(not_run="it was not asked for")
    """Forward pass of the model."""
    refused_config: str | None = None
    """The words of transformers where config.json itself is why there is none."""
