"""The norms of a block: those that its wiring names must be there, and no others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from specdiag.architecture.wiring import UnknownWiring, Wiring
from specdiag.checkpoint.tensors import StoredTensor
from specdiag.function.stored import StoredNorm
from specdiag.spectra.float_types import FLOAT_TYPES

_NORM = re.compile(r"\w*(?:norm|ln)\w*", re.IGNORECASE)
_HEAD_NORM = re.compile(r"(?:.*\.)?(?:attn_)?[qk]_?(?:layer)?_?(?:norm|ln)(?:\.\w+)?", re.IGNORECASE)
_GAINS, _BIASES = ("weight", "gamma", "scale"), ("bias", "beta")


@dataclass(frozen=True, slots=True)
class Norms:
    """The norms of a block.

    Attributes:
        path: of the block.
        wiring: of its architecture.
        stored: every tensor of the checkpoint.
        width: of the residual stream.
    """

    path: str
    wiring: Wiring
    stored: Mapping[str, StoredTensor]
    width: int | None

    def find(self, name: str | None) -> StoredNorm | None:
        """Find a norm of the stream.

        Args:
            name: its path in the block; None where the wiring has none.

        Raises:
            UnknownWiring: it is not there, or not of the kind that the wiring says.
        """
        if name is None:
            return None
        gain, bias = self._tensors(name)
        is_layer = self.wiring.norm == "layer"
        if bias is not None and not is_layer:
            raise UnknownWiring(f"its norm {name} has a bias, which an RMS norm has not")
        if any(tensor is not None and tensor.shape != (self.width,) for tensor in (gain, bias)):
            raise UnknownWiring(f"its norm {name} is not of the width of the config")
        return StoredNorm(gain, bias, self.wiring.gain == "1+g", is_layer)

    def find_outside(self, name: str) -> StoredNorm:
        """Find a norm of the stream outside of the block: the only one whose path ends with a name.

        Args:
            name: the end of its path, such as `encoder.layer_norm`.

        Raises:
            UnknownWiring: there is none or several, or it is not of the kind that the wiring says.
        """
        ends = tuple(f"{name}.{gain}" for gain in _GAINS)
        found = {n.rpartition(".")[0] for n in self.stored if n in ends or n.endswith(tuple(f".{end}" for end in ends))}
        if len(found) != 1:
            raise UnknownWiring(f"the checkpoint has {'several norms' if found else 'no norm'} {name}")
        norm = replace(self, path="").find(found.pop())
        assert norm is not None
        return norm

    def find_head_norms(
        self, q_sizes: tuple[int, int], k_sizes: tuple[int, int]
    ) -> tuple[StoredNorm, StoredNorm] | None:
        """Find the norms of queries and keys; None where the wiring has none.

        Args:
            q_sizes: rows of a head and of all heads, of which either may be the length of a gain.
            k_sizes: likewise of keys.

        Raises:
            UnknownWiring: they are not there, have another length, or are there and the wiring does not name them.
        """
        names = self.wiring.q_norm, self.wiring.k_norm
        if names[0] is None or names[1] is None:
            strange = [name for name in self._vectors() if _HEAD_NORM.fullmatch(name)]
            if strange:
                raise UnknownWiring(f"it has {strange[0]}, which its wiring does not name")
            return None
        (q, _), (k, _) = self._tensors(names[0]), self._tensors(names[1])
        if (q.shape, k.shape) not in [((n,), (m,)) for n, m in zip(q_sizes, k_sizes, strict=True)]:
            raise UnknownWiring("its norms of queries and keys are neither of one head nor of all")
        adds_one = self.wiring.gain == "1+g"
        return StoredNorm(q, None, adds_one, is_layer=False), StoredNorm(k, None, adds_one, is_layer=False)

    def strange(self) -> str | None:
        """Describe a norm that the wiring does not name, which may stand where nothing can be folded."""
        if self.wiring.stream == "post":
            return None
        known = self.wiring.norms | {self.wiring.q_norm, self.wiring.k_norm}
        holders = {name.rpartition(".")[0] or name for name in self._vectors()}
        strange = sorted(h for h in holders if "." not in h and _NORM.fullmatch(h) and h not in known)
        return f"it has a norm {strange[0]}, which its wiring does not name" if strange else None

    def _vectors(self) -> list[str]:
        """Names of the block's vectors and tables of gains, relative to it."""
        start = f"{self.path}."
        return [
            name[len(start) :]
            for name, tensor in self.stored.items()
            if name.startswith(start) and (len(tensor.shape) == 1 or _HEAD_NORM.fullmatch(name[len(start) :]))
        ]

    def _tensors(self, name: str) -> tuple[StoredTensor, StoredTensor | None]:
        """Find gain and bias of a norm."""
        full = f"{self.path}.{name}" if self.path else name
        gain, bias = (
            next((tensor for end in ends if (tensor := self.stored.get(f"{full}.{end}")) is not None), None)
            for ends in (_GAINS, _BIASES)
        )
        if gain is None:
            raise UnknownWiring(f"its norm {name} is not in the checkpoint")
        if any(tensor is not None and tensor.values_dtype not in FLOAT_TYPES for tensor in (gain, bias)):
            raise UnknownWiring(f"its norm {name} is stored in a type that is not read")
        return gain, bias
