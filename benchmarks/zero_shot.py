"""Zero-shot accuracy on the seven commonsense tasks of AlphaDecay's table 3, by lm-eval.

A run of `specdiag train` (its newest complete checkpoint), a folder of weights, or a hub id; of several, each against
the first. Data sets come from the hub. No code from a model or a data set is run.

    python benchmarks/zero_shot.py runs/mine                 # prints a table, writes runs/mine/zero_shot.json
    python benchmarks/zero_shot.py runs/uniform runs/alpha   # two columns and their difference
    python benchmarks/zero_shot.py runs/mine --limit 50      # the first 50 questions of each task, to try it

The paper does not say which accuracy it reports. `acc` is reconstructed: OBQA of 18 to 20 % and ARC-e far above ARC-c
are what `acc` gives for models of that size; length-normalised, OBQA would lie near 30 %. Its average is the plain mean
of the seven. Errors are standard errors over questions; of a difference, over the same questions, pair by pair.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from specdiag.errors import SourceError, SpecdiagError
from specdiag.files import write_atomically
from specdiag.spectra.accelerator import resolve_device
from specdiag.system.distributions import version
from specdiag.train.checkpoints.inspect import checkpoints_of, find_complete, has_weights
from specdiag.train.data.byte_tokenizer import byte_tokenizer
from specdiag.train.data.tokenizers import find_tokenizer, open_tokenizer
from specdiag.train.data.tokens import BYTES
from specdiag.train.runs.config import load_config
from specdiag.train.runs.folders import run_of

NAME = "zero_shot.json"


@dataclass(frozen=True, slots=True)
class Task:
    """A task by its name in lm-eval, and the metric that is reported."""

    name: str
    metric: str = "acc"


TASKS: dict[str, Task] = {
    "ARC-c": Task("arc_challenge"),
    "ARC-e": Task("arc_easy"),
    "PIQA": Task("piqa"),
    "HellaSwag": Task("hellaswag"),
    "OBQA": Task("openbookqa"),
    "WinoGrande": Task("winogrande"),
    "BoolQ": Task("boolq"),
}
"""In the order of the table; the metric is reconstructed."""

Scores = dict[str, list[float]]
"""Scores of every question, by task."""
Results = dict[str, tuple[str, Scores, dict[str, Any]]]
"""By source: the model that was asked, its scores, and all that lm-eval says of the tasks."""


def model_of(source: str) -> tuple[str, Any]:
    """The model that transformers loads for a source, and the tokenizer.

    Raises:
        SourceError: there is no whole checkpoint, or no tokenizer.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
            raise SourceError(f"'{source}' is no folder and no hub id: name a run, a folder of weights or org/name")
        return source, open_tokenizer(source)
    checkpoint = folder.resolve()
    if checkpoints_of(checkpoint):
        found, passed_over = find_complete(checkpoint)
        for path, why in passed_over:
            print(f"{path.name} of {source} is incomplete ({why}) and passed over", file=sys.stderr)
        if found is None:
            raise SourceError(f"'{source}' has no complete checkpoint: let the run save one, or name a folder")
        checkpoint = found
    elif not has_weights(checkpoint):
        raise SourceError(f"'{source}' holds no checkpoint-N and no weights")
    run = run_of(checkpoint)
    tokenizer, config = find_tokenizer(checkpoint, run), load_config(run)
    if tokenizer is None and config is not None and config.fingerprint.tokens == BYTES:
        tokenizer = byte_tokenizer()
    if tokenizer is None:
        raise SourceError(
            f"'{checkpoint}' has no tokenizer and its run does not say that bytes are tokens: save the tokenizer that "
            "made its training data beside the weights, by tokenizer.save_pretrained"
        )
    return str(checkpoint), tokenizer


def evaluate(
    model: str,
    tokenizer: Any,
    tasks: Mapping[str, Task] = TASKS,
    *,
    include: Path | None = None,
    device: str = "auto",
    batch_size: str = "8",
    limit: int | None = None,
) -> tuple[Scores, dict[str, Any]]:
    """Ask one model all questions.

    Args:
        model: a folder or a hub id.
        tokenizer: of the model.
        tasks: by the name in the table.
        include: a folder of task files, instead of those that come with lm-eval.
        device: `auto` is a GPU if there is one.
        batch_size: a number, or `auto`.
        limit: questions of each task, the first ones; None for all.

    Returns:
        The scores of its questions, and everything that lm-eval says of the tasks.

    Raises:
        SourceError: it cannot be loaded, its questions not be fetched, or its model sees too little.
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # What a question without a context would follow; a tokenizer without special tokens gets the end of a line.
    starts = tokenizer.bos_token_id is not None or tokenizer.eos_token_id is not None
    where, held = device if device == "cpu" else resolve_device(device), None
    try:
        held = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            backend="causal",
            trust_remote_code=False,
            prefix_token_id=None if starts else tokenizer.encode("\n", add_special_tokens=False)[-1],
            device=where,
            batch_size=batch_size,
        )
        results = lm_eval.simple_evaluate(
            model=held,
            tasks=[task.name for task in tasks.values()],
            num_fewshot=0,
            limit=limit,
            task_manager=TaskManager(include_path=include, include_defaults=include is None),
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        what = "cannot be loaded" if held is None else "cannot be asked"
        raise SourceError(f"{model} {what} ({str(error).strip().partition(chr(10))[0]})") from error
    except AssertionError as error:  # lm-eval says no more
        if held is None:
            raise
        raise SourceError(
            f"lm-eval gave up on {model} ({error or 'no reason given'}): its model has {held.max_length} positions, "
            "and an answer that is longer cannot be scored"
        ) from error
    scores: Scores = {}
    for label, task in tasks.items():
        samples = sorted(results["samples"][task.name], key=lambda sample: sample["doc_id"])
        scores[label] = [float(sample[task.metric]) for sample in samples]
    return scores, {task.name: results["results"][task.name] for task in tasks.values()}


def summary(scores: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """Mean and standard error of each task, and their average, in percent."""
    found = {label: (100 * fmean(v), 100 * stdev(v) / math.sqrt(len(v))) for label, v in scores.items()}
    errors = math.sqrt(sum(error**2 for _, error in found.values()))
    return found | {"Avg.": (fmean(mean for mean, _ in found.values()), errors / len(found))}


def difference(scores: Scores, first: Scores) -> dict[str, tuple[float, float]]:
    """The same of the differences on each question."""
    return summary({label: [a - b for a, b in zip(v, first[label], strict=True)] for label, v in scores.items()})


def table(runs: Mapping[str, Scores], tasks: Mapping[str, Task] = TASKS) -> str:
    """A row for each task: each run in percent, and its difference from the first run."""
    first = next(iter(runs.values()))
    columns = [summary(scores) for scores in runs.values()]
    differences = [difference(scores, first) for scores in list(runs.values())[1:]]
    heads = ["less the first"] if len(runs) == 2 else [f"{source} less the first" for source in list(runs)[1:]]
    rows = [["task", "metric", "n", *runs, *heads]]
    for label in (*tasks, "Avg."):
        row = [label, tasks[label].metric, str(len(first[label]))] if label in tasks else [label, "", ""]
        row += [f"{mean:.2f} ± {error:.2f}" for mean, error in (column[label] for column in columns)]
        rows.append(row + [f"{mean:+.2f} ± {error:.2f}" for mean, error in (found[label] for found in differences)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (
        [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))] for r in rows
    )
    return "\n".join("  ".join(cells).rstrip() for cells in aligned)


def record(
    found: Mapping[str, tuple[str, Scores, dict[str, Any]]], tasks: Mapping[str, Task] = TASKS
) -> dict[str, Any]:
    """Everything about the runs that is kept."""
    first = next(iter(found.values()))[1]

    def numbers(held: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
        return {label: {"percent": mean, "stderr": error} for label, (mean, error) in held.items()}

    return {
        "schema": 1,
        "tasks": {
            label: {"lm_eval": t.name, "metric": t.metric, "origin": "reconstructed", "n": len(first[label])}
            for label, t in tasks.items()
        },
        "runs": {
            source: {
                "model": model,
                "scores": numbers(summary(scores)),
                "less_the_first": numbers(difference(scores, first)) if scores is not first else None,
                "lm_eval": said,
            }
            for source, (model, scores, said) in found.items()
        },
        "versions": {name: version(name) for name in ("lm_eval", "transformers", "torch", "specdiag")},
    }


def parser() -> argparse.ArgumentParser:
    """Options of the command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("sources", nargs="+", metavar="RUN", help="a run, a folder of weights or a hub id")
    made.add_argument("--out", type=Path, help=f"default: {NAME} in the first run's folder, of a hub id right here")
    made.add_argument("--device", default="auto", help="default: a GPU if there is one")
    made.add_argument("--batch-size", default="8", help="a number or 'auto'")
    made.add_argument("--limit", type=int, help="questions of each task, for a try")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate, save, print."""
    given = parser().parse_args(arguments)
    if given.limit is not None and given.limit < 2:
        parser().error(f"--limit {given.limit} must be at least 2: one answer has no error")
    sources = list(dict.fromkeys(given.sources))
    out = given.out or (run_of(Path(sources[0])) if Path(sources[0]).is_dir() else Path()) / NAME
    if not os.access(out.parent, os.W_OK):
        sys.exit(f"zero_shot.py: {out} cannot be written: name another file with --out")
    found: Results = {}
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the table
            models = {source: model_of(source) for source in sources}
            for source, (model, tokenizer) in models.items():
                print(f"{source}: {model}", file=sys.stderr)
                options = {"device": given.device, "batch_size": given.batch_size, "limit": given.limit}
                found[source] = (model, *evaluate(model, tokenizer, **options))
    except SpecdiagError as error:
        sys.exit(f"zero_shot.py: {error}")
    except ImportError as error:
        sys.exit(f"zero_shot.py: {error}: pip install 'spectral-diagnostics[eval]'")
    print(table({source: scores for source, (_, scores, _) in found.items()}))
    write_atomically(out, json.dumps(record(found), indent=1).encode())
    print(f"saved: {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
