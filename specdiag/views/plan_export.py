"""A decay plan for other tools: code for a training script, TOML, and rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import cast

import msgspec

from specdiag.architecture.wrapper_names import WRAPPERS
from specdiag.decay.plan import DecayPlan, PlanEntry
from specdiag.errors import UsageError
from specdiag.files import Table
from specdiag.text.printable import in_toml, printable
from specdiag.views.export import export

COLUMNS: tuple[str, ...] = (*(name for name in PlanEntry.__struct_fields__ if name != "part_values"), "headline")
"""Columns of csv. Parsers know no comment there, so that the headline of the plan stands in every row."""
_CODE = ("torch", "transformers")
_GGUF = re.compile(r"blk\.\d+\.")

_TORCH = '''\
# {title}
# {headline}
# One decay for each parameter, in as many groups as there are different decays. Needs torch alone.
import torch

RATIOS = {ratios}
WRAPPERS = {wrappers}


def param_groups(model, lr, weight_decay={base}):
    """For torch.optim.AdamW(param_groups(model, lr=3e-4{given})), and any optimizer that takes groups."""
    groups, missing = {{}}, set(RATIOS)
    embeddings = {{id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}}
    for name, parameter in model.named_parameters():
        name = ".".join(part for part in name.removeprefix("module.").split(".") if part not in WRAPPERS)
        missing.discard(name)
        leaf = name.rpartition(".")[2]
        matrix = parameter.ndim >= 2 and "bias" not in leaf and not leaf.startswith("b_")
        decays = name in RATIOS or matrix and "embed" not in name and id(parameter) not in embeddings
        decay = RATIOS.get(name, 1.0) * weight_decay if decays else 0.0
        groups.setdefault(decay, []).append(parameter)
    if missing:
        raise ValueError(f"the plan does not fit this model: it has no {{sorted(missing)[:3]}}")
    return [{{"params": held, "lr": lr, "weight_decay": decay}} for decay, held in groups.items()]
'''

_TRANSFORMERS = """\
# {title}
# {headline}
# Applied inside optimizer.step(): the Trainer's own groups, schedulers and checkpoints keep their layout, and its
# weight_decay is the base{base}. Save the plan first: specdiag recommend ... -o plan.json
from specdiag.train import AlphaDecayCallback, DecayPlanCallback

trainer.add_callback(DecayPlanCallback("plan.json"))  # fixed ratios, as planned
# trainer.add_callback(AlphaDecayCallback(s1={s1}, s2={s2}, every=500))  # or derived anew while training
"""


def export_plan(plan: DecayPlan, format: str) -> bytes:
    """Encode a plan in one of `FORMATS`.

    Args:
        plan: the plan.
        format: torch, transformers, json, toml, csv or md.

    Returns:
        The content of the file.

    Raises:
        UsageError: the format is unknown, or code is asked for a plan of a GGUF file.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown export '{format}'; choose from {', '.join(FORMATS)}")
    if format in _CODE and (name := next((e.name for e in plan.entries if _GGUF.match(e.name)), None)):
        raise UsageError(
            f"'{name}' is a name of GGUF, which no module of torch has: for {format} code make the plan from the "
            "checkpoint that the GGUF file was converted from"
        )
    return FORMATS[format](plan)


def _torch(plan: DecayPlan) -> bytes:
    base = "" if plan.base_weight_decay is None else repr(plan.base_weight_decay)
    code = _TORCH.format(
        given="" if base else ", weight_decay=0.1",
        title=_title(plan),
        headline=plan.headline,
        ratios=_literal(plan.ratios),
        base=base,
        wrappers=WRAPPERS,
    )
    # Without a base the argument has no default.
    return code.replace("lr, weight_decay=)", "lr, weight_decay)").encode()


def _literal(ratios: Mapping[str, float]) -> str:
    """Write a dictionary of Python, in ASCII: untrusted names are escaped."""
    return "{\n" + ",\n".join(f"    {_quoted(name)}: {ratio!r}" for name, ratio in ratios.items()) + "\n}"


def _quoted(name: str) -> str:
    inner = name.encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{inner}"'


def _transformers(plan: DecayPlan) -> bytes:
    base = "" if plan.base_weight_decay is None else f" (TrainingArguments(weight_decay={plan.base_weight_decay!r}))"
    return _TRANSFORMERS.format(title=_title(plan), headline=plan.headline, base=base, s1=plan.s1, s2=plan.s2).encode()


def _toml(plan: DecayPlan) -> bytes:
    import tomli_w

    table = cast("Table", _without_gaps(msgspec.to_builtins(plan)))
    return in_toml(f"# {plan.headline}\n{tomli_w.dumps(table)}".encode())


def _csv(plan: DecayPlan) -> bytes:
    rows = [msgspec.structs.asdict(entry) | {"headline": plan.headline} for entry in plan.entries]
    return export(rows, COLUMNS, "csv")


def _markdown(plan: DecayPlan) -> bytes:
    table = export([msgspec.structs.asdict(entry) for entry in plan.entries], COLUMNS[:-1], "md")
    return f"{plan.headline}\n\n".encode() + table


def _title(plan: DecayPlan) -> str:
    """Write a line of comment with untrusted names escaped."""
    text = f"Weight decay for {plan.source}: {plan.rule} rule on {plan.basis}, report {plan.report_digest[:16]}"
    return printable(" ".join(text.split()))


def _without_gaps(value: object) -> object:
    """Leave out fields that are None: TOML has no null."""
    if isinstance(value, dict):
        return {name: _without_gaps(inner) for name, inner in value.items() if inner is not None}
    return [_without_gaps(inner) for inner in value] if isinstance(value, list | tuple) else value


FORMATS: dict[str, Callable[[DecayPlan], bytes]] = {
    "torch": _torch,
    "transformers": _transformers,
    "json": DecayPlan.to_json,
    "toml": _toml,
    "csv": _csv,
    "md": _markdown,
}
"""Encoders by name."""
