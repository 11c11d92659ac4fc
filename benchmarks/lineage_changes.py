"""Changes of a state dict whose relation to the original is known: other forms, codes, noise, pruning, strangers.

Each takes the state of a llama or a BERT under Hugging Face's names and gives a new one; nothing is shared with the
code that is measured.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]
_MATRIX = re.compile(r"layers?\.\d+\..*weight$")


@dataclass(frozen=True)
class Shape:
    """Sizes that changes of form need.

    Attributes:
        heads: of queries.
        groups: of keys and values.
        is_llama: whether gains may be folded, neurons scaled and the stream turned; else it is a BERT.
    """

    heads: int
    groups: int
    is_llama: bool


def matrices(state: State) -> list[str]:
    """Names of the matrices in layers."""
    return [name for name, value in state.items() if value.ndim == 2 and _MATRIX.search(name)]


def each(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """Change every matrix in the layers."""
    names = set(matrices(state))
    return {
        name: change(value.double()).to(value.dtype) if name in names else value.clone()
        for name, value in state.items()
    }


def bf16(state: State) -> State:
    """Round to bfloat16."""
    return each(state, lambda w: w.bfloat16().double())


def codes(bits: int) -> Callable[[State], State]:
    """Round each row to equal steps of its range."""

    def change(w: Tensor) -> Tensor:
        step = w.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        return (w / step).round() * step

    return lambda state: each(state, change)


def noise(size: float, seed: int) -> Callable[[State], State]:
    """Add Gaussian noise of a share of each matrix's norm."""
    rng = torch.Generator().manual_seed(seed)
    return lambda state: each(
        state, lambda w: w + size * w.std() * torch.randn(w.shape, generator=rng, dtype=torch.float64)
    )


def low_rank(size: float, rank: int, seed: int) -> Callable[[State], State]:
    """Add a random product of low rank, as a LoRA leaves it, of a share of each matrix's norm."""
    rng = torch.Generator().manual_seed(seed)

    def change(w: Tensor) -> Tensor:
        left = torch.randn(len(w), rank, generator=rng, dtype=torch.float64)
        update = left @ torch.randn(rank, w.shape[1], generator=rng, dtype=torch.float64)
        return w + size * w.norm() / update.norm() * update

    return lambda state: each(state, change)


def pruned(share: float) -> Callable[[State], State]:
    """Set the smallest entries of each matrix to zero."""

    def change(w: Tensor) -> Tensor:
        limit = w.abs().flatten().kthvalue(max(1, int(share * w.numel()))).values
        return torch.where(w.abs() > limit, w, 0.0)

    return lambda state: each(state, change)


def shuffled(seed: int) -> Callable[[State], State]:
    """Shuffle the entries of each matrix: a stranger with the same entries."""
    rng = torch.Generator().manual_seed(seed)
    return lambda state: each(state, lambda w: w.flatten()[torch.randperm(w.numel(), generator=rng)].reshape(w.shape))


def impostor(seed: int) -> Callable[[State], State]:
    """Keep the stored spectrum of each matrix, and draw its singular vectors anew."""
    rng = torch.Generator().manual_seed(seed)

    def change(w: Tensor) -> Tensor:
        sigma = torch.linalg.svdvals(w)
        left, right = (
            torch.linalg.qr(torch.randn(n, len(sigma), generator=rng, dtype=torch.float64)).Q for n in w.shape
        )
        return left * sigma @ right.T

    return lambda state: each(state, change)


def renamed(state: State) -> State:
    """Put another prefix before all names."""
    return {f"model.language_model.{name.removeprefix('model.').removeprefix('bert.')}": v for name, v in state.items()}


def other_form(shape: Shape, seed: int, *, turned: bool = False) -> Callable[[State], State]:
    """Fold gains, mix and renumber heads, rescale and renumber neurons; a llama's stream may be turned as well."""

    def change(state: State) -> State:
        rng = torch.Generator().manual_seed(seed)
        new = {name: value.double().clone() for name, value in state.items()}
        layers = sorted({m[0] for name in new if (m := re.search(r"^.*layers?\.\d+\.", name))})
        for start in layers:
            (_llama_layer if shape.is_llama else _bert_layer)(new, start, shape, rng)
        if turned:
            _turn(new, layers, rng)
        return {name: value.to(state[name].dtype if name in state else torch.float32) for name, value in new.items()}

    return change


def _mixing(n: int, rng: torch.Generator) -> Tensor:
    return torch.randn(n, n, generator=rng, dtype=torch.float64) + 2 * n**0.5 * torch.eye(n, dtype=torch.float64)


def _scales(n: int, rng: torch.Generator) -> Tensor:
    return torch.exp(0.5 * torch.randn(n, generator=rng, dtype=torch.float64))


def _llama_layer(new: State, start: str, shape: Shape, rng: torch.Generator) -> None:
    attention, mlp = f"{start}self_attn.", f"{start}mlp."
    for norm, readers in (
        ("input_layernorm", [f"{attention}{r}_proj" for r in "qkv"]),
        ("post_attention_layernorm", [f"{mlp}gate_proj", f"{mlp}up_proj"]),
    ):
        gain = new[f"{start}{norm}.weight"]
        for reader in readers:
            new[f"{reader}.weight"] *= gain
        new[f"{start}{norm}.weight"] = torch.ones_like(gain)
    q, k, v = (new[f"{attention}{r}_proj.weight"] for r in "qkv")
    o = new[f"{attention}o_proj.weight"]
    h, per = len(q) // shape.heads, shape.heads // shape.groups
    q, k, v = (w.view(-1, h, w.shape[1]) for w in (q, k, v))
    o = o.view(len(o), shape.heads, h)
    for group in range(shape.groups):
        mix, plane = _mixing(h, rng), _scales(h // 2, rng).repeat(2)[:, None]
        served = slice(group * per, (group + 1) * per)
        v[group] = mix @ v[group]
        o[:, served] = o[:, served] @ torch.linalg.inv(mix)
        k[group] = k[group] * plane
        q[served] = q[served] / plane
    groups = torch.randperm(shape.groups, generator=rng)
    heads = torch.cat([g * per + torch.randperm(per, generator=rng) for g in groups])
    for name, value in (("q", q[heads]), ("k", k[groups]), ("v", v[groups])):
        new[f"{attention}{name}_proj.weight"] = value.reshape(-1, value.shape[-1])
    new[f"{attention}o_proj.weight"] = o[:, heads].reshape(len(o), -1)
    up, down, gate = (new[f"{mlp}{r}_proj.weight"] for r in ("up", "down", "gate"))
    scale, order = _scales(len(up), rng), torch.randperm(len(up), generator=rng)
    new[f"{mlp}up_proj.weight"] = (up * scale[:, None])[order]
    new[f"{mlp}down_proj.weight"] = (down / scale)[:, order]
    new[f"{mlp}gate_proj.weight"] = gate[order]


def _bert_layer(new: State, start: str, shape: Shape, rng: torch.Generator) -> None:
    inner, outer = f"{start}attention.self.", f"{start}attention.output.dense.weight"
    h = len(new[f"{inner}query.weight"]) // shape.heads
    order = torch.randperm(shape.heads, generator=rng)
    o = new[outer].view(len(new[outer]), shape.heads, h)
    mixes = [[_mixing(h, rng) for _ in range(shape.heads)] for _ in range(2)]
    for name, parts in (("query", mixes[0]), ("key", [torch.linalg.inv(m).T for m in mixes[0]]), ("value", mixes[1])):
        weight, bias = new[f"{inner}{name}.weight"], new[f"{inner}{name}.bias"]
        cut = torch.stack([p @ w for p, w in zip(parts, weight.view(shape.heads, h, -1), strict=True)])
        cut_bias = torch.stack([p @ b for p, b in zip(parts, bias.view(shape.heads, h), strict=True)])
        new[f"{inner}{name}.weight"], new[f"{inner}{name}.bias"] = (
            cut[order].reshape(weight.shape),
            cut_bias[order].flatten(),
        )
    o = torch.stack([o[:, i] @ torch.linalg.inv(mixes[1][i]) for i in range(shape.heads)], dim=1)
    new[outer] = o[:, order].reshape(new[outer].shape)
    up, down = f"{start}intermediate.dense", f"{start}output.dense.weight"
    neurons = torch.randperm(len(new[f"{up}.weight"]), generator=rng)
    new[f"{up}.weight"], new[f"{up}.bias"] = new[f"{up}.weight"][neurons], new[f"{up}.bias"][neurons]
    new[down] = new[down][:, neurons]


def _turn(new: State, layers: list[str], rng: torch.Generator) -> None:
    """Turn the residual stream; gains are folded, the head is untied."""
    embedding = next(name for name in new if name.endswith("embed_tokens.weight"))
    head = next((name for name in new if name.endswith("lm_head.weight")), "lm_head.weight")
    norm = next(name for name in new if re.search(r"(^|model\.)norm\.weight$", name))
    output = new.get(head, new[embedding]).clone() * new[norm]
    new[norm] = torch.ones_like(new[norm])
    d = new[embedding].shape[1]
    turn = torch.linalg.qr(torch.randn(d, d, generator=rng, dtype=torch.float64)).Q
    new[embedding], new[head] = new[embedding] @ turn, output @ turn
    for start in layers:
        for name in [n for n in new if n.startswith(start) and new[n].ndim == 2]:
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            new[name] = turn.T @ new[name] if writes else new[name] @ turn


def without_layers(state: State, drop: set[int]) -> State:
    """Leave layers out and number the others anew."""
    kept: State = {}
    numbers = sorted({int(m[1]) for name in state if (m := re.search(r"layers?\.(\d+)\.", name))} - drop)
    places = {old: new for new, old in enumerate(numbers)}
    for name, value in state.items():
        found = re.search(r"(layers?\.)(\d+)(\.)", name)
        if found is None:
            kept[name] = value
        elif int(found[2]) in places:
            kept[name.replace(found[0], f"{found[1]}{places[int(found[2])]}{found[3]}", 1)] = value
    return kept


def linear(first: State, second: State, share: float) -> State:
    """Merge two models: a share of the first, the rest of the second."""
    return {n: (share * v.double() + (1 - share) * second[n].double()).to(v.dtype) for n, v in first.items()}


def slerp(first: State, second: State, share: float) -> State:
    """Merge two models along the arc between the tensors of each name."""

    def arc(a: Tensor, b: Tensor) -> Tensor:
        cosine = (a.flatten() @ b.flatten() / (a.norm() * b.norm()).clamp_min(1e-30)).clamp(-1, 1)
        angle = torch.arccos(cosine)
        if angle < 1e-6:
            return share * a + (1 - share) * b
        return (torch.sin(share * angle) * a + torch.sin((1 - share) * angle) * b) / torch.sin(angle)

    return {n: arc(v.double(), second[n].double()).to(v.dtype) for n, v in first.items()}


def ties(base: State, first: State, second: State, density: float) -> State:
    """Merge the changes of two models by TIES: keep the largest, elect a sign, average what agrees."""

    def trim(delta: Tensor) -> Tensor:
        if delta.numel() < 2:
            return delta
        limit = delta.abs().flatten().kthvalue(max(1, int((1 - density) * delta.numel()))).values
        return torch.where(delta.abs() > limit, delta, 0.0)

    merged: State = {}
    for name, value in base.items():
        deltas = torch.stack([trim(m[name].double() - value.double()) for m in (first, second)])
        sign = deltas.sum(0).sign()
        agrees = (deltas.sign() == sign) & (deltas != 0)
        mean = (deltas * agrees).sum(0) / agrees.sum(0).clamp_min(1)
        merged[name] = (value.double() + mean).to(value.dtype)
    return merged


def layers_of_both(first: State, second: State, until: int) -> State:
    """Take layers below a number from the first, all else from the second."""

    def is_first(name: str) -> bool:
        found = re.search(r"layers?\.(\d+)\.", name)
        return found is not None and int(found[1]) < until

    return {n: (v if is_first(n) else second[n]).clone() for n, v in first.items()}
