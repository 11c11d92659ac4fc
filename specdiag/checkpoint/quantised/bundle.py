"""Everything that a checkpoint stores beside a tensor, and what its configuration says of quantisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from specdiag.checkpoint.tensors import StoredTensor
from specdiag.spectra.float_types import FLOAT_TYPES

_SECTIONS = ("quantization_config", "compression_config", "quantization")


@dataclass(frozen=True, slots=True)
class Bundle:
    """The tensors of a checkpoint by name, and the part of its configuration that quantisers write.

    Attributes:
        tensors: by name.
        leaves: what lies beside each other: the last parts of the names by what comes before them.
        settings: `quantization_config`, or `quantization` (MLX); empty without one.
        config: config.json.
    """

    tensors: dict[str, StoredTensor]
    leaves: dict[str, set[str]]
    settings: Mapping[str, object]
    config: Mapping[str, object]

    @classmethod
    def of(cls, tensors: Sequence[StoredTensor], config: Mapping[str, object]) -> Bundle:
        """Collect the tensors of a checkpoint by name, and the settings of its quantisation.

        Args:
            tensors: everything that the checkpoint stores.
            config: config.json.
        """
        leaves: dict[str, set[str]] = {}
        for tensor in tensors:
            parent, leaf = split(tensor.name)
            leaves.setdefault(parent, set()).add(leaf)
        return cls({t.name: t for t in tensors}, leaves, _settings(config), config)

    @property
    def method(self) -> str:
        """`quant_method` in lower case, empty where it is not said."""
        return str(self.settings.get("quant_method") or "").lower()

    @property
    def bits(self) -> set[int]:
        """Every number of bits that the settings give to weights; compressed-tensors has one a group of layers."""
        sections = [_inner(group, "weights") for group in _inner(self.settings, "config_groups").values()]
        stated = [self.number("bits"), *(positive(section.get("num_bits")) for section in sections)]
        return {bits for bits in stated if bits is not None}

    def number(self, key: str) -> int | None:
        """Look up a positive whole number in the settings; None for anything else."""
        return positive(self.settings.get(key))

    def floats(self, *names: str) -> StoredTensor | None:
        """Find a tensor of floating-point numbers of 16 bits or more.

        Args:
            names: the names that it may have.

        Returns:
            The first that there is, None without one.
        """
        tensors = (self.tensors.get(name) for name in names)
        return next((t for t in tensors if t is not None and t.dtype in FLOAT_TYPES), None)

    def integers(self, name: str, *dtypes: str) -> StoredTensor | None:
        """Find a tensor of one of some types.

        Args:
            name: of the tensor.
            dtypes: the types, in the spelling of safetensors.

        Returns:
            The tensor, None where it is missing or of another type.
        """
        tensor = self.tensors.get(name)
        return tensor if tensor is not None and tensor.dtype in dtypes else None


def split(name: str) -> tuple[str, str]:
    """Split the name of a tensor into its module and its name there."""
    parent, _, leaf = name.rpartition(".")
    return parent, leaf


def positive(value: object) -> int | None:
    """Give `value` if it is a whole number above 0, None for anything else that JSON may hold."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def weight_name(stem: str) -> str:
    """Name the parameter that codes stand for.

    Args:
        stem: the name of the codes without its last part. In some files it ends in `weight` already.
    """
    return stem if stem.endswith("weight") else f"{stem}.weight".lstrip(".")


def shown(shape: Sequence[int]) -> str:
    """Write a shape for a message, such as 3x4."""
    return "x".join(map(str, shape)) or "one"


def _inner(outer: object, key: str) -> Mapping[str, object]:
    """Give the section `key` of a section, empty where either is none."""
    inner = cast("Mapping[str, object]", outer).get(key) if isinstance(outer, Mapping) else None
    return cast("Mapping[str, object]", inner) if isinstance(inner, Mapping) else {}


def _settings(config: Mapping[str, object]) -> Mapping[str, object]:
    inner = config.get("text_config")
    places = [config, cast("Mapping[str, object]", inner)] if isinstance(inner, Mapping) else [config]
    sections = (place.get(section) for place in places for section in _SECTIONS)
    return next((cast("Mapping[str, object]", section) for section in sections if isinstance(section, Mapping)), {})
