"""The forward pass without values of `specdiag audit`: for how many model types it says anything, and false alarms.

Every model type that transformers registers is built from its default configuration, and again at half of its widths.
Where the default runs, half of it should: a failure that the check reports there is held against the CPU.

    python benchmarks/forward_pass.py                   # all types, an hour; writes results/forward_pass.json
    python benchmarks/forward_pass.py --types llama,t5  # some types, printed; writes nothing
    python benchmarks/forward_pass.py --docs            # puts the figures of that file into docs/audit.md
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import completeness
import pages
import zoo

from specdiag.auditing.reference_config import checked_copy
from specdiag.auditing.reference_process.building import build
from specdiag.auditing.reference_process.failures import NoModelError
from specdiag.auditing.reference_process.inputs import candidates
from specdiag.auditing.reference_process.running import trial

LIMIT_SECONDS, SECONDS = 240, 10.0
ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "forward_pass.json"
DOCS = ROOT / "docs" / "audit.md"
LARGEST = 100_000_000
"""Parameters of the largest model that is run on the CPU."""
_WIDTH = re.compile(r"(\w+_)?(hidden_size|intermediate_size|ffn_dim|d_model|d_ff|n_embd|n_head|attention_heads|"
                    r"key_value_heads)")  # fmt: skip


def halved(part: Any) -> Any:
    """A configuration of half the widths and heads, at any depth."""
    if not isinstance(part, dict):
        return part
    return {
        key: value // 2 if type(value) is int and value > 1 and value % 2 == 0 and _WIDTH.fullmatch(str(key))
        else halved(value)
        for key, value in part.items()
    }  # fmt: skip


def run(config: Mapping[str, Any]) -> dict[str, Any]:
    """The answer of the check for a configuration; `no_model` where there is none."""
    try:
        copy = checked_copy(config)
        return trial(build(copy), copy, SECONDS, exchanges=0)
    except NoModelError as error:
        return {"no_model": str(error)}


def runs_on_cpu(config: Mapping[str, Any]) -> str:
    """Ground truth: the same model with random weights, on inputs of zeros."""
    import torch

    meta = build(checked_copy(config))
    if sum(p.numel() for p in meta.parameters()) > LARGEST:
        return "too large for the CPU"
    model = type(meta)(meta.config).eval()
    said = ""
    for _, given in candidates(model):
        with torch.no_grad():
            try:
                model(**{n: torch.zeros(v.shape) if v.is_floating_point() else v for n, v in given.items()})
            except Exception as error:  # noqa: BLE001 - whatever the model raises
                said = f"stops: {error}"[:200]
            else:
                return "runs"
    return said


def measure(kinds: Iterable[str]) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Each type with the answers for its default and for half of it, or why it has no model."""
    signal.signal(signal.SIGALRM, _too_slow)
    for kind in kinds:
        signal.alarm(LIMIT_SECONDS)
        try:
            name, model, _ = zoo.build(kind)
            config = completeness.configuration(model) | {"architectures": [name], "model_type": kind}
            del model
            half = run(halved(config))
            if "stopped" in half:
                half["cpu"] = runs_on_cpu(halved(config))
            yield kind, {"default": run(config), "half": half}
        except Exception as error:  # noqa: BLE001 - whatever a type raises is its reason
            yield kind, zoo.reason(error)
        finally:
            signal.alarm(0)


def _too_slow(*_: object) -> None:
    raise zoo.TooSlowError(f"took more than {LIMIT_SECONDS} s")


def summarise(results: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The figures over all types, as they are committed."""
    built = {kind: result for kind, result in results.items() if isinstance(result, dict)}
    answers = {way: {kind: result[way] for kind, result in built.items()} for way in ("default", "half")}
    return {
        "transformers": version,
        "registered": len(results),
        "built": len(built),
        "run": {way: sum(answer == {} for answer in found.values()) for way, found in answers.items()},
        "no_model": {way: sum("no_model" in answer for answer in found.values()) for way, found in answers.items()},
        "not_run": {k: a["not_run"] for k, a in answers["default"].items() if "not_run" in a},
        "stopped": {way: {k: a for k, a in found.items() if "stopped" in a} for way, found in answers.items()},
    }


def sections(summary: Mapping[str, Any]) -> dict[str, str]:
    """Text of docs/audit.md."""
    halves = summary["stopped"]["half"]
    truth = Counter(answer["cpu"].partition(":")[0] for answer in halves.values())
    told = ", ".join(f"{n} {'stop' if t == 'stops' else t}" for t, n in sorted(truth.items())) or "none"
    return {"forward": (
        f"Forward pass without values: of {summary['built']} model types that build from their default configuration "
        f"(transformers {summary['transformers']}), {summary['run']['default']} run, "
        f"{len(summary['not_run'])} are not checked, and {len(summary['stopped']['default'])} are reported. At half "
        f"the widths {summary['run']['half']} run and {len(halves)} are reported. The same {len(halves)} with values "
        f"on the CPU: {told}."
    )}  # fmt: skip


def main() -> None:
    """Measure, print, write; or put the figures of the last run into the page."""
    options = _options()
    if options.docs:
        figures = sections(json.loads(options.out.read_text()))
        command = "python benchmarks/forward_pass.py --docs"
        sys.exit(pages.update(options.docs_file, figures, options.out, command, check=options.check))
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    transformers.logging.set_verbosity_error()
    kinds = options.types.split(",") if options.types else list(CONFIG_MAPPING.keys())
    results: dict[str, Any] = {}
    for kind, result in measure(kinds):
        results[kind] = result
        print(kind, json.dumps(result), flush=True)
    summary = summarise(results, transformers.__version__)
    print(sections(summary)["forward"])
    if not options.types:
        options.out.write_text(json.dumps(summary, indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the forward pass without values on all model types.")
    parser.add_argument("--types", help="model types, comma-separated; default all")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    pages.add_options(parser, DOCS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
