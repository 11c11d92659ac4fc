"""Changes of form at random that the entries of a wiring allow: none may change an output.

Nothing is shared with the code under test but the entry, which says what may be changed: a wrong one allows what changes
the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from wired_blocks import Layer, layers, memory_norm

from specdiag.architecture.wiring import Wiring


class Changes:
    """Changes of the blocks of a model in place, drawn from one seed."""

    def __init__(self, kind: str, model: Any, wirings: Sequence[Wiring], n_rotated: int) -> None:
        self.wirings, self.n_rotated = wirings, n_rotated
        self.is_layer = wirings[0].norm == "layer"
        self.rng = np.random.default_rng(2)
        self.layers = layers(kind, model)
        self.power = {"opt": 1, "t5": 1, "nemotron": 2}.get(kind)
        self.kind, self.model = kind, model

    def wiring(self, layer: Layer) -> Wiring:
        return self.wirings[layer.block]

    def rotated(self, layer: Layer) -> int:
        return 0 if layer.is_cross else self.n_rotated

    def all(self) -> None:
        """Make every change that the wiring allows."""
        with torch.no_grad():
            for layer in self.layers:
                self.fold(layer)
                self.mix_values(layer)
                self.mix_scores(layer)
                self.scale_outputs(layer)
                self.neurons(layer)
                self.experts(layer)
                if self.is_layer:
                    self.shift_writers(layer)
                self.move_biases(layer)
            self.fold_memory()

    def fold_memory(self) -> None:
        """Move a random part of the gain of an encoder's last norm into the keys and values of all cross-attention."""
        cross = [layer for layer in self.layers if layer.is_cross]
        if not cross or self.wiring(cross[0]).memory is None:
            return
        norm, part = memory_norm(self.kind, self.model), self.scales(cross[0].q.shape[-1])
        norm.weight.mul_(part)
        if getattr(norm, "bias", None) is not None:
            norm.bias.mul_(part)
        for layer in cross:
            layer.k.div_(part)
            layer.v.div_(part)

    def turn_stream(self) -> None:
        """Turn the residual stream of a decoder with norms in front of its readers; its head becomes its own."""
        self.model.lm_head.weight = torch.nn.Parameter(self.model.lm_head.weight.detach().clone())
        self.model.config.tie_word_embeddings = False
        head, (embeddings, last) = self.model.lm_head.weight, _ends(self.model)
        turn = self.turn(head.shape[1])
        with torch.no_grad():
            for layer in self.layers:
                wiring = self.wiring(layer)
                assert wiring.gain == "g"
                for name, readers in (
                    (wiring.attn_in, [layer.q, layer.k, layer.v]),
                    (wiring.mlp_in, [layer.up, layer.gate, layer.router]),
                ):
                    assert name is not None
                    _turn_readers(layer.norms[name], [reader for reader in readers if reader is not None], turn)
                layer.o.copy_(torch.tensordot(turn.T, layer.o, dims=1))
                if layer.down is not None:
                    layer.down.copy_(turn.T @ layer.down)
                for bias in (layer.biases[name] for name in ("o", "down") if name in layer.biases):
                    bias.copy_(bias @ turn)
            _turn_readers(last, [head], turn)
            for table in embeddings:
                table.copy_(table @ turn)

    def turn(self, n: int) -> Tensor:
        """Draw a rotation; LayerNorm takes the mean out, so its direction stays."""
        if not self.is_layer:
            return torch.linalg.qr(self.normal(n, n)).Q
        basis = torch.linalg.qr(torch.cat([torch.ones(n, 1, dtype=torch.float64), self.normal(n, n - 1)], 1)).Q
        inner = torch.linalg.qr(self.normal(n - 1, n - 1)).Q
        return basis @ torch.block_diag(torch.ones(1, 1, dtype=torch.float64), inner) @ basis.T

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.rng.standard_normal(shape))

    def scales(self, *shape: int) -> Tensor:
        return torch.exp(0.5 * self.normal(*shape))

    def mixing(self, n: int) -> Tensor:
        return self.normal(n, n) + 2 * n**0.5 * torch.eye(n, dtype=torch.float64)

    def fold(self, layer: Layer) -> None:
        """Move a random part of each gain, and of each norm's bias where all readers have one, into the readers."""
        attn = [("q", layer.q), ("k", layer.k), ("v", layer.v)]
        mlp = [("up", layer.up), ("gate", layer.gate), ("router", layer.router)]
        readers: dict[str, list[tuple[str, Tensor]]] = {}
        wiring = self.wiring(layer)
        front = ((wiring.cross_in, attn[:1]),) if layer.is_cross else ((wiring.attn_in, attn), (wiring.mlp_in, mlp))
        for name, matrices in front:
            if name is not None:
                readers.setdefault(name, []).extend((k, m) for k, m in matrices if m is not None)
        for name, matrices in readers.items():
            norm, part = layer.norms[name], self.scales(layer.q.shape[-1])
            one = float(wiring.gain == "1+g")
            norm.weight.copy_((norm.weight + one) * part - one)
            shift = 0.3 * self.normal(len(part))
            takes = all(k in layer.biases or (k == "k" and not self.rotated(layer)) for k, _ in matrices)
            for k, matrix in matrices:
                if takes and getattr(norm, "bias", None) is not None and k in layer.biases:
                    layer.biases[k].sub_(matrix @ shift)
                matrix.div_(part)
            if getattr(norm, "bias", None) is not None:
                norm.bias.copy_((norm.bias + shift if takes else norm.bias) * part)

    def mix_values(self, layer: Layer) -> None:
        """V <- A V, O <- O A^-1 for each group."""
        per = len(layer.q) // len(layer.v)
        for group in range(len(layer.v)):
            mix = self.mixing(layer.v.shape[1])
            layer.v[group] = mix @ layer.v[group]
            if "v" in layer.biases:
                layer.biases["v"][group] = mix @ layer.biases["v"][group]
            heads = slice(group * per, group * per + per)
            layer.o[:, heads] = layer.o[:, heads] @ torch.linalg.inv(mix)

    def mix_scores(self, layer: Layer) -> None:
        """Rotary planes: a rotation and a scale. Other rows: any A. Normalised queries and keys: their scale."""
        per, head_dim = len(layer.q) // len(layer.k), layer.q.shape[1]
        if layer.q_gain is not None and layer.k_gain is not None:
            return self.scale_normalised(layer, per)
        for group in range(len(layer.k)):
            of_q, of_k = self.mixed_rows(head_dim, self.rotated(layer), self.wiring(layer).rope)
            for head in range(group * per, group * per + per):
                layer.q[head] = of_q @ layer.q[head]
                if "q" in layer.biases:
                    layer.biases["q"][head] = of_q @ layer.biases["q"][head]
            layer.k[group] = of_k @ layer.k[group]
            if "k" in layer.biases:
                layer.biases["k"][group] = of_k @ layer.biases["k"][group]
        return None

    def mixed_rows(self, head_dim: int, n: int, rope: str | None) -> tuple[Tensor, Tensor]:
        of_q = torch.zeros(head_dim, head_dim, dtype=torch.float64)
        of_k = torch.zeros_like(of_q)
        for rows in planes(n, rope):
            angle, scale = float(self.normal(1)), float(self.scales(1))
            turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=torch.float64)
            place = torch.tensor(rows)
            of_q[place[:, None], place] = scale * turn
            of_k[place[:, None], place] = turn / scale
        if n < head_dim:
            mix = self.mixing(head_dim - n)
            of_q[n:, n:], of_k[n:, n:] = mix, torch.linalg.inv(mix).T
        return of_q, of_k

    def scale_normalised(self, layer: Layer, per: int) -> None:
        assert layer.q_gain is not None
        assert layer.k_gain is not None
        one = float(self.wiring(layer).gain == "1+g")
        is_per_head = len(layer.q_gain) == layer.q.shape[1]
        for side in (layer.q, layer.k):
            side.mul_(self.scales(len(side) if is_per_head else 1)[:, None, None])
        groups = 1 if is_per_head else len(layer.k)
        q_gain, k_gain = (
            layer.q_gain.unflatten(0, (-1, layer.q.shape[1])),
            layer.k_gain.unflatten(0, (-1, layer.q.shape[1])),
        )
        for group in range(groups):
            heads = slice(0, 1) if is_per_head else slice(group * per, group * per + per)
            for rows in planes(self.n_rotated, self.wiring(layer).rope):
                scale = float(self.scales(1))
                q_gain[heads, list(rows)] = (q_gain[heads, list(rows)] + one) * scale - one
                k_gain[group, list(rows)] = (k_gain[group, list(rows)] + one) / scale - one

    def scale_outputs(self, layer: Layer) -> None:
        """Scale what a norm follows."""
        if self.wiring(layer).attn_out is not None:
            layer.o.mul_(self.scales(1))
        if self.wiring(layer).mlp_out is not None and layer.down is not None:
            layer.down.mul_(self.scales(1))

    def neurons(self, layer: Layer, *, scaled: bool | None = None) -> None:
        """Renumber neurons; rescale them in a gated MLP, and with ReLU and its square."""
        if layer.up is None or layer.down is None:
            return
        m, power = layer.up.shape[1], 1 if layer.is_glu or scaled else self.power
        if power is not None:
            scale = self.scales(len(layer.up), m)
            layer.up.mul_(scale[..., None])
            layer.down.div_(scale[:, None] ** power)
            if "up" in layer.biases:
                layer.biases["up"].mul_(scale)
        order = torch.from_numpy(self.rng.permutation(m))
        for matrix in (layer.up, layer.gate):
            if matrix is not None:
                matrix.copy_(matrix[:, order].clone())
        layer.down.copy_(layer.down[..., order].clone())
        if "up" in layer.biases:
            layer.biases["up"].copy_(layer.biases["up"][:, order].clone())

    def experts(self, layer: Layer) -> None:
        """Renumber experts, and add the same to all rows of the router."""
        if layer.router is None:
            return
        order = torch.from_numpy(self.rng.permutation(len(layer.router)))
        for matrix in (layer.gate, layer.up, layer.down, layer.router):
            assert matrix is not None
            matrix.copy_(matrix[order].clone())
        if self.wiring(layer).router == "softmax":
            layer.router.add_(self.normal(layer.router.shape[1]))

    def shift_writers(self, layer: Layer) -> None:
        """Add 1a' to what writes to the stream, whose mean LayerNorm takes out."""
        layer.o.add_(self.normal(*layer.o.shape[1:]))
        if layer.down is not None:
            layer.down.add_(self.normal(layer.down.shape[-1]))
        for name in ("o", "down"):
            if name in layer.biases:
                layer.biases[name].add_(float(self.normal(1)))

    def move_biases(self, layer: Layer) -> None:
        """Key biases that positions do not rotate are free; value biases may go to the output's."""
        if "k" in layer.biases:
            n = self.rotated(layer)
            layer.biases["k"][:, n:] += self.normal(*layer.k.shape[:2])[:, n:]
        if {"v", "o"} <= set(layer.biases):
            moved = self.normal(*layer.v.shape[:2])
            layer.biases["v"].sub_(moved)
            repeated = moved.repeat_interleave(len(layer.q) // len(layer.v), 0)
            layer.biases["o"].add_(torch.einsum("dhi,hi->d", layer.o, repeated))


def planes(n: int, rope: str | None) -> list[tuple[int, int]]:
    """Rows of each rotary plane."""
    half = n // 2
    if rope == "half":
        return [(i, i + half) for i in range(half)]
    return [(2 * i, 2 * i + 1) for i in range(half)]


def _ends(model: Any) -> tuple[list[Tensor], Any]:
    """Return what writes the stream first, and the norm in front of the head."""
    if hasattr(model, "transformer"):
        inner = model.transformer
        return [inner.wte.weight, inner.wpe.weight], inner.ln_f
    return [model.model.embed_tokens.weight], model.model.norm


def _turn_readers(norm: Any, readers: Sequence[Tensor], turn: Tensor) -> None:
    """Move the gain of a norm into what reads it, and turn that."""
    for reader in readers:
        reader.copy_((reader * norm.weight) @ turn)
    if getattr(norm, "bias", None) is not None:
        norm.bias.copy_((norm.bias / norm.weight) @ turn)
    norm.weight.fill_(1)
