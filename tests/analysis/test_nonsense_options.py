"""Nonsense for every parameter of every public function: a UsageError or an answer that can be saved and read again."""

from __future__ import annotations

import inspect
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import torch
from fuzzing import seconds
from huggingface_hub import constants

import specdiag
from specdiag.analysis.options import ANALYSIS
from specdiag.auditing.records import AuditReport
from specdiag.comparison.records import Comparison
from specdiag.decay.plan import DecayPlan, load_plan
from specdiag.decay.schedule_record import decay_schedule
from specdiag.dynamics.records import Simulation
from specdiag.errors import SpecdiagError
from specdiag.report import SpectralReport, load_report
from specdiag.text import checks
from specdiag.trajectories.records import Trajectory

NONSENSE: tuple[Any, ...] = (
    None, -1, 0, 1, 0.5, math.nan, math.inf, -math.inf, 1e308, "x", "", "\0", "\ud800", "a" * 300, "~nosuchuser/x", b"x", [], (), {}, set(),
    object(), True, False, 10**30, 10**5000, (5,), (95, 5), ("x", 1), [None], {"x": 1}, int, print, torch.ones(2),
)  # fmt: skip
PLACES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
WEIGHTS = {f"model.layers.{i}.{place}.weight": torch.randn(8, 8) for i in range(2) for place in PLACES}
SECONDS = seconds(4)
QUICK: dict[str, Any] = {"device": "cpu", "jobs": 1}


def model() -> torch.nn.Module:
    return torch.nn.TransformerEncoderLayer(8, 2, 16)


def adamw(of: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(of.parameters(), lr=1e-3, weight_decay=0.1)


Call = tuple[Callable[..., Any], dict[str, Any], tuple[str, ...]]
"""A function, arguments that it takes, and the names of its further arguments."""


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Call]]:
    folder = tmp_path_factory.mktemp("saved")
    report = specdiag.analyze(WEIGHTS, **QUICK)
    report.save(folder / "report.json")
    plan = specdiag.recommend(report)
    plan.save(folder / "plan.json")
    run = folder / "run"
    for step in (1, 2):
        (run / f"checkpoint-{step}").mkdir(parents=True)
        torch.save(WEIGHTS, run / f"checkpoint-{step}" / "pytorch_model.bin")
    found = specdiag.trajectory(run, **QUICK)
    found.save(folder / "run.json")
    live = model()
    simulated = {"lr": 1e-3, "weight_decay": 0.1, "steps": 50}
    course = {"method": "scionc", "peak_lr": 1e-3, "steps_total": 10}
    groups = list(live.parameters())
    optimizers = ("AWD", "AdaDecay", "RenormalizedAdamW", "Scion")
    rules = (
        "AlphaDecay",
        "AlphaLR",
        "CorrectedDecay",
        "GradientRatioDecay",
        "ModuleAdaDecay",
        "NormWatch",
        "WeightwiseDecay",
    )
    found_calls: dict[str, Call] = {
        "analyze": (specdiag.analyze, {"source": WEIGHTS, **QUICK}, ()),
        "audit": (specdiag.audit, {"source": WEIGHTS, **QUICK}, ANALYSIS),
        "audit of a report": (specdiag.audit, {"source": report}, ()),
        "compare": (specdiag.compare, {"before": WEIGHTS, "after": WEIGHTS, **QUICK}, ANALYSIS),
        "recommend": (specdiag.recommend, {"source": WEIGHTS, **QUICK}, ANALYSIS),
        "recommend of a report": (
            specdiag.recommend, {"source": report, "weight_decay": 0.1, "lr": 1e-3, "steps_left": 9}, (),
        ),
        "recommend_rates": (specdiag.recommend_rates, {"source": report}, ()),
        "recommend_rates of weights": (specdiag.recommend_rates, {"source": WEIGHTS, **QUICK}, ANALYSIS),
        "trajectory": (specdiag.trajectory, {"source": run, "out": folder / "out", **QUICK}, ANALYSIS),
        "watch": (lambda **given: next(specdiag.watch(**given)), {"run": run, "once": True, "out": folder / "w"}, ()),
        "simulate": (specdiag.simulate, simulated, ()),
        "schedule": (decay_schedule, course, ()),
        "plot.esd": (specdiag.plot.esd, {"report": report}, ()),
        "scion_groups": (specdiag.optim.scion_groups, {"model": live}, ()),
        "optimizers": (specdiag.optim.optimizers, {"name": "adamw", "model": live}, ("lr", "weight_decay", "beta1")),
        "roles": (specdiag.roles, {"shapes": {"layers.0.q_proj.weight": (8, 8)}}, ()),
        "load_report": (specdiag.load_report, {"path": folder / "report.json"}, ()),
        "load_plan": (specdiag.load_plan, {"path": folder / "plan.json"}, ()),
        "load_trajectory": (specdiag.load_trajectory, {"path": folder / "run.json"}, ()),
        "html_report": (specdiag.html_report, {"report": report}, ()),
        "report.save": (report.save, {"path": folder / "again.json"}, ()),
        "report.eigenvalues": (report.eigenvalues, {"name": report.records[0].key}, ()),
        "plan.save": (plan.save, {"path": folder / "again.json"}, ()),
        "plan.param_groups": (specdiag.recommend(live, **QUICK).param_groups, {"model": live, "weight_decay": 0.1}, ()),
        "trajectory.save": (found.save, {"path": folder / "again.json"}, ()),
        "trajectory.series": (found.series, {"metric": "alpha"}, ()),
        "plot.alpha": (specdiag.plot.alpha, {"report": report, "basis": "alpha"}, ()),
        "plot.heatmap": (specdiag.plot.heatmap, {"report": report}, ()),
        "plot.scree": (specdiag.plot.scree, {"report": report}, ()),
        "plot.balance": (specdiag.plot.balance, {"report": report, "basis": "alpha"}, ()),
        "plot.decay": (specdiag.plot.decay, {"plan": plan}, ()),
        "plot.decay_run": (specdiag.plot.decay_run, {"log": None}, ()),
        "plot.paper": (specdiag.plot.paper, {"report": report, "plan": plan}, ()),
        "plot.norms": (specdiag.plot.norms, {"run": found}, ()),
        "plot.trajectory": (specdiag.plot.trajectory, {"trajectory": found}, ()),
        "plot.save": (specdiag.plot.save, {"figure": specdiag.plot.scree(report), "path": folder / "x.svg"}, ()),
    }  # fmt: skip
    for name in optimizers:
        found_calls[name] = (getattr(specdiag.optim, name), {"params": groups}, ())
    for name in rules:
        kind = getattr(specdiag.optim, name)
        found_calls[name] = (_attached(kind), {"model": live}, _parameters(kind))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield found_calls


def _attached(kind: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **given: kind(**given)


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return tuple(n for n, p in inspect.signature(function).parameters.items() if p.kind not in kinds)


def _cases(calls: dict[str, Call]) -> Iterator[tuple[str, str, Any]]:
    for what, (function, _, further) in calls.items():
        for name in dict.fromkeys((*_parameters(function), *further)):
            if name in ("params", "model", "optimizer", "process_group"):  # torch's own, checked by torch
                continue
            called = name in ("progress", "on_step", "schedule")  # what a caller's own function raises is the caller's
            yield from ((what, name, value) for value in NONSENSE if not (called and callable(value)))


def _read_again(found: object, path: Any) -> None:
    """Save what a function gave, read it, and compare."""
    if isinstance(found, SpectralReport):
        assert load_report(found.save(path)).records == found.records
    elif isinstance(found, DecayPlan):
        assert load_plan(found.save(path)).to_json() == found.to_json()
    elif isinstance(found, (Comparison, Simulation, AuditReport, Trajectory)):
        again = msgspec.json.decode(found.save(path).read_bytes(), type=type(found))
        assert msgspec.json.decode(again.to_json()) == msgspec.json.decode(found.to_json())


def _ask(calls: dict[str, Call], case: tuple[str, str, Any], path: Any) -> str | None:
    """Describe the fault in the answer to one piece of nonsense."""
    what, name, value = case
    function, given, _ = calls[what]
    given = dict(given)
    if "model" in given and what[0].isupper():
        given["optimizer"] = adamw(given["model"])
    shown = f"{what}({name}={checks.shown(value)})"
    try:
        found = function(**given | {name: value})
    except SpecdiagError as error:
        return None if str(error) and "unexpected" not in str(error) else f"{shown}: {error}"
    except Exception as error:  # noqa: BLE001
        return f"{shown}: {type(error).__name__}: {str(error)[:150]}"
    finally:
        if "optimizer" in given:
            given["optimizer"].zero_grad()
    if hasattr(found, "detach"):
        found.detach()
    try:
        _read_again(found, path)
    except Exception as error:  # noqa: BLE001
        return f"{shown} is accepted and cannot be read again: {type(error).__name__}: {str(error)[:150]}"
    return None


def test_nonsense_is_refused_in_a_sentence(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = list(_cases(calls))
    random.Random(time.time_ns() if SECONDS > 60 else 0).shuffle(cases)
    begin = time.monotonic()
    wrong: list[str] = []
    for case in cases:
        if (said := _ask(calls, case, tmp_path / "x.json")) is not None:
            wrong.append(said)
        if time.monotonic() - begin > SECONDS:
            break
    assert not wrong, "\n".join(wrong)
