"""Identity of a measured matrix: the facts that its row repeats."""

from __future__ import annotations

from typing import Any, Protocol

from specdiag.records import ModuleRole

Columns = dict[str, Any]
"""Values by field name of `ModuleRecord`, of which a row is put together."""


class MatrixIdentity(Protocol):
    """A weight matrix without its values: all that a measurement takes, and nothing of where it is stored."""

    @property
    def name(self) -> str:
        """Name of the stored tensor."""
        ...

    @property
    def key(self) -> str:
        """`name`, or `name[part]`."""
        ...

    @property
    def module(self) -> ModuleRole:
        """Role, family, layer, component and part."""
        ...

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) as the network multiplies it."""
        ...

    @property
    def n_slices(self) -> int:
        """Number of matrices of that shape whose eigenvalues are pooled."""
        ...

    @property
    def rank(self) -> int | None:
        """r of a product of two factors; None for any other matrix."""
        ...

    @property
    def ratios(self) -> tuple[float, float] | None:
        """Ratios by which a product of two factors has a null (`product_null`); None for any other matrix."""
        ...

    @property
    def balanced_eps(self) -> float | None:
        """Spacing of the stored type at 1, of a balanced form; None for any other matrix."""
        ...

    @property
    def storage_dtype(self) -> str:
        """Stored type, such as `BF16`; of a quantised weight its format."""
        ...

    @property
    def parametrized(self) -> bool:
        """True where the values were computed from other Parameters."""
        ...

    @property
    def dequantized(self) -> bool:
        """True where the values were computed from codes and scales."""
        ...


def identity(matrix: MatrixIdentity) -> Columns:
    """Columns of a row that tell its matrix from others with the same values.

    Args:
        matrix: the measured matrix.

    Returns:
        Values by field name of `ModuleRecord`.
    """
    module = matrix.module
    return {
        "name": matrix.name,
        "part": module.part,
        "form": module.form,
        "role": module.role,
        "family": module.family,
        "layer": module.layer,
        "head": module.head,
        "component": module.component,
        "cross_attention": module.cross_attention,
        "recognised": module.recognised,
        "rows": matrix.shape[0],
        "cols": matrix.shape[1],
        "n_slices": matrix.n_slices,
        "storage_dtype": matrix.storage_dtype,
        "dequantized": matrix.dequantized,
        "parametrized": matrix.parametrized,
    }
