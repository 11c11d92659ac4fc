"""Formats that are known by name only. Their codes are refused with the name of the format, never analysed."""

from __future__ import annotations

from dataclasses import dataclass

from specdiag.checkpoint.quantised.bundle import Bundle, split
from specdiag.spectra.float_types import FLOAT_TYPES


@dataclass(frozen=True, slots=True)
class Family:
    """The names by which a format is recognised: of its codes, and of a tensor beside them.

    Attributes:
        name: what it is called.
        codes: the last part of the name of its codes.
        marker: the last part of the name of a tensor beside them, without which the codes may be anything.
        floats: whether the codes may be stored in a float type. A float parameter W_q is a weight in most models.
    """

    name: str
    codes: str
    marker: str | None = None
    floats: bool = False


_FAMILIES = (
    Family("HQQ", "W_q"),
    Family("HQQ", "W_q", "unpack_view_dtype", floats=True),
    Family("AQLM", "codes", "codebooks"),
    Family("EXL2", "q_weight"),
    Family("EXL3", "trellis"),
    Family("QuIP#", "Qidxs"),
    Family("SpQR", "dense_weights"),
    Family("QQQ", "B", "s_channel"),
    Family("Marlin", "B", "s"),
    Family("HIGGS", "weight", "tables"),
    Family("marlin-24 of compressed-tensors", "weight_packed", "meta"),
    Family("sparse-bitmask of compressed-tensors", "compressed", "bitmask", floats=True),
    Family("quanto", "_data"),
    Family("torchao", "_weight_qdata"),
    Family("FP-Quant", "qweight", "forward_hadamard_matrix"),
    Family("VPTQ", "indices"),
)
_IN_FOLDERS = "VPTQ"
"""Its tables are parameters of modules of their own, `NAME.centroids.weight`."""

_METHODS = {
    "aqlm": "AQLM",
    "bitnet": "BitNet, ternary codes in bytes",
    "eetq": "EETQ",
    "exl2": "EXL2",
    "exl3": "EXL3",
    "fp_quant": "FP-Quant",
    "higgs": "HIGGS",
    "hqq": "HQQ",
    "paroquant": "ParoQuant",
    "quanto": "quanto",
    "quip": "QuIP#",
    "qqq": "QQQ",
    "sinq": "SINQ",
    "spqr": "SpQR",
    "torchao": "torchao",
    "vptq": "VPTQ",
}


def foreign_modules(bundle: Bundle) -> dict[str, Family]:
    """Find the modules whose tensors show a format that is not read.

    Args:
        bundle: all tensors and the configuration.

    Returns:
        The format of each such module, by its name.
    """
    families: dict[str, Family] = {}
    for parent, leaves in bundle.leaves.items():
        for family in _FAMILIES:
            if family.codes not in leaves or (family.marker is not None and family.marker not in leaves):
                continue
            codes = bundle.tensors[f"{parent}.{family.codes}" if parent else family.codes]
            is_codes = family.floats or codes.values_dtype not in FLOAT_TYPES
            if is_codes and (family.name != _IN_FOLDERS or f"{parent}.centroids" in bundle.leaves):
                families.setdefault(parent, family)
    return families


def foreign_method(bundle: Bundle) -> str | None:
    """Name the format that the configuration states if it is one that is not read; None for others."""
    return _METHODS.get(bundle.method)


def belongs(name: str, modules: dict[str, Family]) -> Family | None:
    """Find the unsupported format that a tensor is a part of. Biases are plain tensors in all of them.

    Args:
        name: of the tensor.
        modules: as `foreign_modules` finds them.

    Returns:
        The format, None where its module has none.
    """
    parent, leaf = split(name)
    if leaf == "bias":
        return None
    outer = modules.get(split(parent)[0])
    return modules.get(parent) or (outer if outer is not None and outer.name == _IN_FOLDERS else None)
