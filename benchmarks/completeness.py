"""The checks of `specdiag audit` on completeness, on complete models and on planted faults.

Every model type that transformers registers is built from its default configuration on the meta device, and its names
and shapes are audited as if a file held them: with transformers' own model of the configuration, and by the rules on
shapes alone. A finding there is a false alarm. Then each fault is planted into models of several architectures.

    python benchmarks/completeness.py                   # all types, half an hour; writes results/completeness.json
    python benchmarks/completeness.py --types llama,t5  # some types, printed; writes nothing
    python benchmarks/completeness.py --docs            # puts the figures of that file into docs/audit.md
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pages
import zoo
from completeness_faults import FAULTS, PLANTED, small

from specdiag.architecture.roles import modules
from specdiag.auditing import dispatch
from specdiag.auditing.records import Finding
from specdiag.auditing.reference import Reference
from specdiag.auditing.reference_config import checked_copy, refusal
from specdiag.auditing.reference_process import building, failures, loading
from specdiag.auditing.subject import Subject
from specdiag.auditing.thresholds import default_checks, findings
from specdiag.records import ModuleRecord, Provenance, Settings, Skipped, Source, Summary
from specdiag.report import SpectralReport

LIMIT_SECONDS = 120
ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "completeness.json"
DOCS = ROOT / "docs" / "audit.md"
CHECKS = (
    "layer_gap", "missing_matrix", "layers_differ", "missing_tensor", "missing_optional", "other_shape",
    "unused_tensor", "experts", "layers", "vocabulary", "hidden_size", "intermediate_size", "kv_heads", "n_experts",
    "head",
)  # fmt: skip
LOST = ("shieldgemma2",)
"""AutoModelForImageTextToText saves names of it that transformers 5.23 does not load again: no false alarms."""
Shapes = Mapping[str, tuple[int, ...]]


def report_of(shapes: Shapes, config: Mapping[str, Any]) -> SpectralReport:
    """The report of a checkpoint of these names and shapes, without a number of any spectrum."""
    found = modules(shapes, config)
    records = tuple(
        ModuleRecord(
            name=name, part=p.module.part, role=p.module.role, family=p.module.family, layer=p.module.layer,
            component=p.module.component, cross_attention=p.module.cross_attention, recognised=p.module.recognised,
            rows=p.slicer.shape[1], cols=p.slicer.shape[2], n_slices=p.slicer.shape[0], storage_dtype="F32",
            status="failed", tail="hill", method="gram", compute_dtype="float64",
        )
        for name, parts in found.parts.items()
        for p in parts
    )  # fmt: skip
    skipped = tuple(Skipped(name=n, shape=shapes[n], dtype="F32", reason=why) for n, why in found.skipped.items())
    n = len(records)
    return SpectralReport(
        source=Source(kind="dir", location="zoo", files=("model.safetensors",)), settings=Settings(), records=records,
        skipped=skipped,
        summary=Summary(n_tensors=n, n_parameters=0, n_matrices=n, analysed_parameters=0, skipped={}, statuses={},
                        roles=(), contrasts=()),
        provenance=Provenance(created="", versions={}, platform="", device="cpu", device_name="", jobs=1, seconds=0.0,
                              peak_bytes=0, architecture=config["architectures"][0]),
    )  # fmt: skip


def audited(report: SpectralReport, config: Mapping[str, Any], reference: Reference) -> list[Finding]:
    """The findings of the checks on completeness for the names and shapes of a report."""
    checks = {name: check for name, check in default_checks().items() if name in CHECKS}
    subject = Subject(report, default_checks(), is_checkpoint=True, config=config, reference=reference)
    skipped = dispatch.not_checked(subject)
    return list(findings(dispatch.observe(subject, (c for c in checks.values() if c.id not in skipped)), checks))


def in_file(model: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes that `save_pretrained` writes: tied weights once, experts as files hold them."""
    left_out = {*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in left_out}
    from transformers.core_model_loading import revert_weight_conversion

    state = {name: tensor for name, tensor in model.state_dict().items() if name in shapes}
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, state).items()}


def configuration(model: Any) -> dict[str, Any]:
    """The config.json that `save_pretrained` writes."""
    return {**json.loads(model.config.to_json_string()), "architectures": [type(model).__name__]}


def reference_of(config: Mapping[str, Any], shapes: Shapes) -> Reference:
    """Answer of the process beside an audit, made in this one."""
    if reason := refusal(config, shapes):
        return Reference(reason=reason)
    try:
        model = building.build(checked_copy(config))
        answer = loading.compare(model, {name: list(shape) for name, shape in shapes.items()})
    except failures.NoModelError as error:
        return Reference(reason=str(error))
    return msgspec.convert(answer, Reference)


def alarms(shapes: Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
    """The findings for one model, by the way in which they were made."""
    reference, report = reference_of(config, shapes), report_of(shapes, config)
    result: dict[str, Any] = {"reason": reference.reason} if reference.reason else {}
    for way, answer in (("model", reference), ("shapes", Reference(reason="left out"))):
        found = audited(report, config, answer)
        if found and not (way == "model" and reference.reason):
            result[way] = [f"{f.check} {f.module}: {f.value}" for f in found]
    return result


def measure(kinds: Iterable[str]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Each type with its false alarms, or with the reason why it has no model."""
    signal.signal(signal.SIGALRM, _too_slow)
    for kind in kinds:
        signal.alarm(LIMIT_SECONDS)
        try:
            _, model, _ = zoo.build(kind)
            shapes, config = in_file(model), configuration(model)
            del model
            yield kind, alarms(shapes, config)
        except Exception as error:  # noqa: BLE001 - whatever a type raises is its reason
            yield kind, zoo.reason(error)
        finally:
            signal.alarm(0)


def _too_slow(*_: object) -> None:
    raise zoo.TooSlowError(f"took more than {LIMIT_SECONDS} s")


def planted(kinds: Iterable[str] = PLANTED) -> dict[str, dict[str, dict[str, bool]]]:
    """Find each fault, by architecture, with transformers' model and without it."""
    results: dict[str, dict[str, dict[str, bool]]] = {}
    for kind in kinds:
        model = small(kind)
        shapes, config = in_file(model), configuration(model)
        for name, fault in FAULTS.items():
            changed, settings = dict(shapes), dict(config)
            if not fault(changed, settings, random.Random(f"{kind} {name}")):
                continue
            report = report_of(changed, settings)
            references = {"model": reference_of(settings, changed), "shapes": Reference(reason="left out")}
            results.setdefault(kind, {})[name] = {
                way: any(
                    f.severity == "fail" or f.check == "layers_differ" for f in audited(report, settings, reference)
                )
                for way, reference in references.items()
            }
    return results


def summarise(results: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The figures over all types, as they are committed."""
    built = {kind: result for kind, result in results.items() if isinstance(result, dict)}
    not_compared = {kind: result["reason"] for kind, result in built.items() if "reason" in result}
    return {
        "transformers": version,
        "registered": len(results),
        "built": len(built),
        "compared": len(built) - len(not_compared),
        "not_compared": not_compared,
        "false_alarms": {
            way: {k: r[way] for k, r in built.items() if way in r and not (way == "model" and k in LOST)}
            for way in ("model", "shapes")
        },
        "lost": [kind for kind in LOST if "model" in built.get(kind, {})],
        "planted": planted(),
    }


def sections(summary: Mapping[str, Any]) -> dict[str, str]:
    """Text of docs/audit.md."""
    alarms = {way: ", ".join(found) or "none" for way, found in summary["false_alarms"].items()}
    left_out = ", ".join(f"`{kind}`" for kind in summary["not_compared"]) or "none"
    unread = ", ".join(summary.get("lost", ()))
    saved = f"Rightly reported, because transformers saves names that it does not load: {unread}. " if unread else ""
    lines = [
        f"Complete models: {summary['built']} of {summary['registered']} model types of transformers "
        f"{summary['transformers']} build from their default configuration. {summary['compared']} were compared "
        f"with transformers' own model, and all {summary['built']} with the rules on shapes. False alarms: "
        f"{alarms['model']} with the model, {alarms['shapes']} by shapes alone. {saved}Without a comparison with the "
        f"model: {left_out}.",
        "",
        "| planted into | faults | found with the model | found by shapes alone | not found by shapes alone |",
        "| --- | --- | --- | --- | --- |",
    ]
    for kind, faults in summary["planted"].items():
        found = {way: sum(by[way] for by in faults.values()) for way in ("model", "shapes")}
        lost = ", ".join(fault for fault, by in faults.items() if not by["shapes"])
        lines.append(f"| {kind} | {len(faults)} | {found['model']} | {found['shapes']} | {lost} |")
    return {"completeness": "\n".join(lines)}


def main() -> None:
    """Measure, print, write; or put the figures of the last run into the page."""
    options = _options()
    if options.docs:
        figures = sections(json.loads(options.out.read_text()))
        command = "python benchmarks/completeness.py --docs"
        sys.exit(pages.update(options.docs_file, figures, options.out, command, check=options.check))
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    transformers.logging.set_verbosity_error()
    kinds = options.types.split(",") if options.types else list(CONFIG_MAPPING.keys())
    results: dict[str, Any] = {}
    for kind, result in measure(kinds):
        results[kind] = result
        if isinstance(result, dict) and result:
            print(kind, json.dumps(result)[:600], flush=True)
        if len(results) % 50 == 0:
            print(f"{len(results)} of {len(kinds)} types", file=sys.stderr)
    summary = summarise(results, transformers.__version__)
    print(sections(summary)["completeness"])
    if not options.types:
        options.out.write_text(json.dumps(summary, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check completeness on complete models and on planted faults.")
    parser.add_argument("--types", help="model types, comma-separated; default all")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    pages.add_options(parser, DOCS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
