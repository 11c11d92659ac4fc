"""Checks of sizes in config.json against the shapes: width of the MLP, heads, experts; of experts against routers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import cast

from specdiag.architecture.config import HEADS, number, sections
from specdiag.auditing import shards
from specdiag.auditing.stacks import Layer
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import Observation
from specdiag.records import ModuleRecord

_INTERMEDIATE = ("intermediate_size",)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")
_CHOSEN = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts", "num_selected_experts",
)  # fmt: skip
"""Experts that each token is sent to."""
_GREEDY = "greedy"
"""The `topk_method` of DeepSeek-V2 that chooses among all groups."""
_KEY_VALUE_HEADS = ("num_key_value_heads",)
_ZERO_EXPERTS = ("zero_expert_num",)
"""Experts that pass their input on, which files may count or not."""
_HEAD_DIM = ("head_dim",)
_COMPRESSED = ("kv_lora_rank",)
"""Keys and values of such attention come from one narrow matrix; other layers beside it count heads differently."""
_HIDDEN = ("hidden_size",)
_GATED = re.compile(r"\.mlp\.(gate|up)_proj\.")
"""Elsewhere intermediate_size is adjusted to a multiple, or means another width."""
_NUMBERED = re.compile(r"(?:^|\.)experts?\.([0-9]{1,6})(?=\.|$)")
_STACKED = re.compile(r"expert=([0-9]+)")


def experts(subject: Subject) -> Iterator[Observation]:
    """Find layers that hold another number of experts than their router chooses from, and choices of more than exist.

    Args:
        subject: the subject of the audit.
    """
    chain = sections(subject.config, None)
    stated = number(chain, _EXPERTS)
    if there := max((_choices(layer) for s in subject.stacks.values() for layer in s.values()), default=0):
        yield from _overdrawn(chain, max(there, stated or 0))
    for stem, layers in subject.stacks.items():
        for place, layer in sorted(layers.items()):
            routers, stored = layer.all_of("router"), _experts(layer)
            rows = routers[0].rows if len(routers) == 1 else stored
            # Routers may choose between more than the experts, such as none at all; the configuration counts experts.
            if stored and stored != rows and (rows - stored == 1 if stated is None else stated != stored):
                yield Observation("experts", f"{stem}{place}", stored, rows)


def whole_experts(config: Mapping[str, object]) -> int | None:
    """Count the experts with weights of their own, where the configuration counts others that pass their input on.

    Args:
        config: config.json.

    Returns:
        Their number: they come first. None where all experts are alike.
    """
    chain = sections(config, None)
    return number(chain, _EXPERTS) if number(chain, _ZERO_EXPERTS) else None


def _overdrawn(chain: list[Mapping[str, object]], there: int) -> Iterator[Observation]:
    """Find a number of chosen experts, or of chosen groups of them, above the number that there are."""
    for part in chain:
        for key in _CHOSEN:
            chosen = number([part], [key])
            if chosen is not None and chosen > there:
                yield Observation("experts", None, f"{key} of config.json is {chosen}, and the router has {there}")
        chosen, groups = number([part], ["topk_group"]), number([part], ["n_group"])
        if chosen is not None and groups is not None and chosen > groups and part.get("topk_method") != _GREEDY:
            yield Observation("experts", None, f"topk_group of config.json is {chosen}, and n_group is {groups}")


def sizes(subject: Subject) -> Iterator[Observation]:
    """Compare the width of the MLP, the heads and the number of experts with config.json.

    A size is contradicted where no layer has it: layers of other kinds have other sizes.

    Args:
        subject: the subject of the audit.
    """
    stated = _stated(subject)
    n_experts = stated["n_experts"]
    for stem, layers in subject.stacks.items():
        stored = {
            "intermediate_size": [r for layer in layers.values() for r in _mlp(layer)],
            "kv_heads": [r for layer in layers.values() for r in _keys(layer)],
        }
        for check, records in stored.items():
            wanted = stated[check]
            if wanted is not None and all(r.rows != wanted for r in records):
                yield from (Observation(check, r.key, r.rows, wanted) for r in records)
        counts = {f"{stem}{place}": _experts(layer) for place, layer in sorted(layers.items()) if _experts(layer)}
        if n_experts is not None and n_experts not in counts.values():
            yield from (Observation("n_experts", place, count, n_experts) for place, count in counts.items())


def not_checked(subject: Subject) -> dict[str, str]:
    """List the checks of this file that cannot run, each with the reason.

    Args:
        subject: the subject of the audit.
    """
    checks = ("experts", "intermediate_size", "kv_heads", "n_experts")
    if partial := shards.partial(subject.report):
        return dict.fromkeys(checks, partial)
    if not subject.is_checkpoint:
        return {}
    if not subject.config:
        return dict.fromkeys(checks[1:], subject.without_config)
    return {
        check: f"{subject.config_name} does not say it" for check, value in _stated(subject).items() if value is None
    }


def _stated(subject: Subject) -> dict[str, int | None]:
    """Read the sizes by check."""
    chain = _sections(subject)
    return {
        "intermediate_size": number(chain, _INTERMEDIATE), "kv_heads": _key_rows(chain),
        "n_experts": None if number(chain, _ZERO_EXPERTS) else number(chain, _EXPERTS),
    }  # fmt: skip


def _sections(subject: Subject) -> list[Mapping[str, object]]:
    """Find the sections of config.json, where the model is of one piece and reads text."""
    config = subject.config
    if "vocab_size" not in config or any(
        isinstance(value, Mapping) and "model_type" in cast("Mapping[str, object]", value) for value in config.values()
    ):
        return []
    return sections(config, None)


def _key_rows(chain: list[Mapping[str, object]]) -> int | None:
    """Compute the rows of key projections, where heads and their width are stated."""
    heads, own = number(chain, HEADS), number(chain, _KEY_VALUE_HEADS)
    width = number(chain, _HEAD_DIM)
    hidden = number(chain, _HIDDEN)
    if width is None and hidden is not None and heads is not None and hidden % heads == 0:
        width = hidden // heads
    return None if own is None or width is None or number(chain, _COMPRESSED) else own * width


def _keys(layer: Layer) -> Iterator[ModuleRecord]:
    """List the one key and the one value projection of a layer, where they are of one shape."""
    own = {r.key for (name, _), r in layer.matrices.items() if name.startswith("self_attn.")}
    keys, values = ([r for r in layer.all_of(role) if r.key in own] for role in ("k", "v"))
    if len(keys) == len(values) == 1 and keys[0].rows == values[0].rows:
        yield from (*keys, *values)


def _mlp(layer: Layer) -> Iterator[ModuleRecord]:
    """List gate and up projections of a layer without experts; with experts beside them their width is another one."""
    if not any(r.role == "router" for r in layer.matrices.values()):
        yield from (r for r in (*layer.all_of("gate"), *layer.all_of("up")) if _GATED.search(r.name))


def _choices(layer: Layer) -> int:
    """Count what the router of a layer chooses between; without one, the experts."""
    return max((r.rows for r in layer.all_of("router")), default=_experts(layer))


def _experts(layer: Layer) -> int:
    """Count the experts of a layer by their numbers."""
    found: set[int] = set()
    for name, part in layer.matrices:
        match = _STACKED.match(part or "") or _NUMBERED.search(name)
        if match is not None:
            found.add(int(match[1]))
    return len(found)
