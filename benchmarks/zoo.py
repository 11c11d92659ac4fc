"""Roles from names and shapes, against the classes of transformers' own modules.

Every model type that transformers registers is built from its default configuration on the meta device, which takes no
memory and no weights. `specdiag.roles` sees the names, the shapes and the configuration alone; who is right is decided
by the classes of the modules that own a parameter, from the parameter outwards. The score of a type is the share of its
scored matrix tensors whose family is right. What no class decides is counted and listed, not scored.

    python benchmarks/zoo.py                   # all types, five minutes; writes benchmarks/results/zoo.json
    python benchmarks/zoo.py --types llama,t5  # some types, printed with every tensor that is wrong; writes nothing
    python benchmarks/zoo.py --docs            # puts the figures of that file into docs/zoo.md
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

import pages
from zoo_docs import OUTSIDE, percent, share, update_docs, worst

from specdiag.architecture.names import numbered
from specdiag.architecture.roles import modules

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "zoo.json"
DOCS = ROOT / "docs" / "zoo.md"
LIMIT_SECONDS = 60

# Heads from the most telling to the least; those not named here follow, then the bare model.
HEADS = ("PRETRAINING", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ",
         "CAUSAL_LM", "MASKED_LM", "CTC", "ZERO_SHOT_IMAGE_CLASSIFICATION", "IMAGE_CLASSIFICATION")  # fmt: skip

# What the class of an owner says, by the end of its name; the first line that fits decides. From a parameter outwards
# the first class that fits any line decides. "" ends the search: the owner is none of the families.
OWNERS = (
    ("other", r"Router(MLP)?|TopKGating"),
    ("other", r"(Mamba|Mamba2|Bamba|FalconH1)Mixer|MambaLayer|GatedDeltaNet|RecurrentBlock|Rglru|xLSTMLayer"),
    ("other", r"^LSTM|^GRUCell|ShortConv"),
    # For all its name a block with attention and an MLP in it.
    ("", r"ResidualAttention"),
    ("attention", r"Attention|Attn|MLA|AttentionOutput|AttentionSubsample|AttentionPooling(Head)?|AttnBlock"),
    ("attention", r"AttentionGRUCell"),
    # A stack of linear maps, in attention or in an MLP: what holds it decides. Likewise a mask that is put out.
    ("walk on", r"ParallelExperts|MaskOutput|SelfOutput"),
    ("mlp", r"MLP|Mlp|MLPBlock|MLPLayer|MLP2|FeedForward|FeedForwardNetwork|FeedForwardDense|FFN|FFNLayer|FFNBlock"),
    ("mlp", r"Experts|JetMoeMoE|Dense(Gated)?ActDense|MultiLayerPerceptron|Intermediate|Output|OutputLayer"),
    ("embedding", r"Embed|Embeds|Embedding|Embeddings|Embedder"),
    ("", r"Head|Heads|Pooler|Projector|Connector|Merger|Adapter|Bottleneck|BottleneckLayer|Transform|LayerNorm\w*"),
)
_OWNERS = tuple((family, re.compile(rf"(?:{words})$")) for family, words in OWNERS)

# A layer that holds its feed-forward matrices itself, as BART's does.
_LAYER, _HELD = re.compile(r"(Layer|Block)$"), re.compile(r"\.((fc|linear)_?[12]|ffn(_output)?)\.weight$")
# Tables that attention holds as a bare parameter and reads by relative position or segment.
_TABLE = re.compile(r"(rel_pos_[hw]|position_bias(_table)?|attention_biases|seg_embed|rel_[kv]|_?ape)$")
# Vectors, one a head or an expert.
_BIAS = re.compile(r"bias(_[a-z])?$")
_CONVOLVED = {"1x1": ("attention", "mlp"), "patches": ("embedding",)}
_LISTS = ("ModuleList",)
_LINEAR = ("Linear", "Conv1D", "Sequential", "ModuleList", "ModuleDict")
_THIN = ("N < 2", "depthwise", "empty")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of two axes or more, and who owns it.

    Attributes:
        name: its full name.
        owners: classes of the modules that it lies in, from the innermost to the model.
        kernel: `linear` for what is no convolution, else `1x1`, `patches` for one that cuts its input into patches,
            or `kernel`.
        is_head: whether it belongs to the output embeddings.
    """

    name: str
    owners: tuple[str, ...]
    kernel: str = "linear"
    is_head: bool = False


def judge(parameter: Parameter) -> tuple[str | None, str]:
    """The family that the owners of a parameter say and the class that says it, or None and why they say none."""
    owner = parameter.owners[0]
    if parameter.is_head or owner == "Embedding":
        return "embedding", "output embeddings" if parameter.is_head else owner
    if _TABLE.search(parameter.name):
        return "embedding", f"table of {owner}"
    if _BIAS.search(parameter.name):
        return None, "bias: a vector a head or an expert"
    if parameter.kernel == "kernel":
        return None, "convolution with a kernel"
    in_block = any(owner in _LISTS for owner in parameter.owners)
    if in_block and _HELD.search(parameter.name) and _LAYER.search("".join(parameter.owners[1:2])):
        return "mlp", parameter.owners[1]
    family, decider, depth = _nearest(parameter.owners)
    if parameter.kernel != "linear" and family not in _CONVOLVED[parameter.kernel]:
        return None, "other convolution"
    # The list right above may be one of heads or experts: what holds that must stand in a list of blocks.
    if family == "mlp" and not any(owner in _LISTS for owner in parameter.owners[depth + 2 :]):
        return None, "MLP outside every list of blocks: head, projector or timestep"
    if family == "embedding" and any(owner in _LISTS for owner in parameter.owners[:depth]):
        return None, "block inside an embedding class"
    return family, decider


def _nearest(owners: Sequence[str]) -> tuple[str | None, str, int]:
    """The family of the nearest owner that has one, its class and its depth."""
    for depth, owner in enumerate(owners):
        said = next((family for family, words in _OWNERS if words.search(owner)), None)
        if said == "":
            return None, "head, pooler, projector, adapter or norm", depth
        if said is not None and said != "walk on":
            return said, owner, depth
    holder = next((owner for owner in owners if owner not in _LINEAR), owners[0])
    return None, f"{holder}{OUTSIDE}", len(owners)


def score(parameters: Iterable[Parameter], shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> Any:
    """Compares the roles of `specdiag.roles` for a model type with those of its classes.

    Args:
        parameters: those of two axes or more.
        shapes: the shape of every tensor by its name.
        config: the configuration.

    Returns:
        Counts of tensors: `right`, `scored`, `matrices`, `unrecognised`; `wrong`, the names that are, indices written
        `#`, with what was expected and found; `not_scored`, the reasons counted.
    """
    found = modules(shapes, config)
    counts, wrong, aside = Counter[str](), Counter[str](), Counter[str]()
    for parameter in parameters:
        family, who = judge(parameter)
        parts = [part.module for part in found.parts.get(parameter.name, ())]
        skipped = found.skipped.get(parameter.name, "")
        if skipped.startswith(_THIN) or (skipped and family is None):
            continue
        counts["matrices"] += 1
        counts["unrecognised"] += any(not module.recognised for module in parts)
        if family is None:
            aside[who] += 1
            continue
        counts["scored"] += 1
        families = {module.family for module in parts}
        counts["right"] += families == {family}
        if families != {family}:
            what = skipped or "/".join(sorted({f"{module.family} ({module.role})" for module in parts}))
            wrong[f"{numbered(parameter.name)}: {family} by {who}, found {what}"] += 1
    keys = ("right", "scored", "matrices", "unrecognised")
    return {**{key: counts[key] for key in keys}, "wrong": dict(wrong), "not_scored": dict(aside)}


def by_family(shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> Counter[str]:
    """Numbers of parameters in the matrices of each family."""
    found = Counter[str]()
    for parts in modules(shapes, config).parts.values():
        for part in parts:
            found[part.module.family] += prod(part.slicer.shape)
    return found


def moved(built: Counter[str], stored: Counter[str]) -> dict[str, int]:
    """The families that have more or fewer parameters under the names of a file than under those of the model."""
    return {family: stored[family] - built[family] for family in sorted({*built, *stored})
            if stored[family] != built[family]}  # fmt: skip


def read(model: nn.Module) -> tuple[list[Parameter], dict[str, tuple[int, ...]]]:
    """The parameters of two axes or more of a model, and the shape of everything in its state dict."""
    owners = dict(model.named_modules(remove_duplicate=False))
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    head = _output_embeddings(model)
    parameters: list[Parameter] = []
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if tensor.ndim >= 2 and name in shapes:
            path = name.split(".")
            chain = [owners[".".join(path[:depth])] for depth in range(len(path) - 1, -1, -1)]
            classes = tuple(type(owner).__name__ for owner in chain)
            parameters.append(Parameter(name, classes, _kernel(chain), chain[0] is head))
    return parameters, shapes


def stored(model: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]] | None:
    """The shape of everything that the model writes into a file, None where names and shapes are the same.

    transformers renames, stacks and fuses what it reads, and takes that back when it writes.
    """
    from transformers.core_model_loading import revert_weight_conversion

    found = {name: tuple(t.shape) for name, t in revert_weight_conversion(model, model.state_dict()).items()}
    return None if found == shapes else found


def _output_embeddings(model: Any) -> object:
    try:
        return model.get_output_embeddings() or object()
    except (AttributeError, NotImplementedError, TypeError):
        return object()


def _kernel(chain: Sequence[Any]) -> str:
    """How a convolution reads its input. A parametrised one lies three modules above its tensor."""
    for owner in chain[:3]:
        if hasattr(owner, "kernel_size") and hasattr(owner, "stride"):
            size = owner.kernel_size if isinstance(owner.kernel_size, tuple) else (owner.kernel_size,)
            if prod(size) == 1:
                return "1x1"
            # Channels of pixels or spectra; more are features, which a merging of patches reads.
            return "patches" if owner.kernel_size == owner.stride and owner.in_channels <= 3 else "kernel"
    return "linear"


class TooSlowError(Exception):
    """A type took longer than its limit."""


class NoModelError(Exception):
    """A type is only a configuration."""


def build(kind: str) -> tuple[str, nn.Module, dict[str, Any]]:
    """The class of one model type, its model on the meta device, and its configuration.

    Raises:
        Exception: whatever its classes raise; the first head that can be built is taken.
    """
    import torch
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    configuration = CONFIG_MAPPING[kind]
    names = [f"MODEL_FOR_{head}_MAPPING" for head in HEADS]
    rest = sorted(name for name in dir(auto) if re.fullmatch(r"MODEL_FOR_\w+_MAPPING", name))
    mappings = [getattr(auto, name) for name in [*dict.fromkeys([*names, *rest]), "MODEL_MAPPING"]]
    found = [one for mapping in mappings if (one := mapping.get(configuration, None)) is not None]
    classes = list(dict.fromkeys(one[0] if isinstance(one, tuple) else one for one in found))
    if not classes:
        raise NoModelError("no model class: part of another type")
    first: Exception | None = None
    for model_class in classes:
        try:
            with torch.device("meta"):
                model = model_class._from_config(configuration())
            return model_class.__name__, model, model.config.to_dict()
        except TooSlowError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a type raises is its reason
            first = first or error
    assert first is not None
    raise first


def reason(error: Exception) -> str:
    """Why a type could not be built, short enough to be counted."""
    said = " ".join(str(error).split())
    package = re.search(r"requires the (\S+) library", said)
    if package:
        return f"needs {package[1]}"
    return said if isinstance(error, NoModelError | TooSlowError) else f"{type(error).__name__}: {said[:80]}"


def measure(kinds: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Each type with its score, or with the reason why it has none."""
    signal.signal(signal.SIGALRM, _too_slow)
    for kind in kinds:
        signal.alarm(LIMIT_SECONDS)
        try:
            name, model, config = build(kind)
            parameters, shapes = read(model)
            in_file = stored(model, shapes)
        except Exception as error:  # noqa: BLE001 - whatever a type raises is its reason
            yield kind, reason(error)
        else:
            signal.alarm(0)
            result = {"class": name, **score(parameters, shapes, config)}
            if in_file is not None:
                result["moved_in_file"] = moved(by_family(shapes, config), by_family(in_file, config))
            yield kind, result
        finally:
            signal.alarm(0)


def _too_slow(*_: object) -> None:
    raise TooSlowError(f"took more than {LIMIT_SECONDS} s")


def summarise(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures over all types, as they are committed."""
    types = {kind: result for kind, result in results.items() if not isinstance(result, str)}
    failures: dict[str, list[str]] = {}
    for kind, result in sorted(results.items()):
        if isinstance(result, str):
            failures.setdefault(result, []).append(kind)
    scores = [found for result in types.values() if (found := share(result)) is not None]
    aside = Counter[str]()
    for result in types.values():
        aside.update(result.pop("not_scored"))
    total = Counter[str]()
    for result in types.values():
        total.update({key: result[key] for key in ("right", "scored", "matrices", "unrecognised")})
    return {
        "registered": len(results),
        "built": len(types),
        "types_scored": len(scores),
        "mean": mean(scores) if scores else 0.0,
        "perfect": sum(found == 1 for found in scores),
        "tensors": dict(total),
        "not_scored": dict(aside.most_common()),
        "failures": dict(sorted(failures.items(), key=lambda item: -len(item[1]))),
        "types": dict(sorted(types.items())),
    }


def main() -> None:
    """Measure, print, write; or one of the other jobs that the options name."""
    options = _options()
    if options.docs:
        sys.exit(update_docs(options.docs_file, json.loads(options.out.read_text()), options.check))
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    transformers.logging.set_verbosity_error()
    kinds = options.types.split(",") if options.types else list(CONFIG_MAPPING.keys())
    results: dict[str, Any] = {}
    for kind, result in measure(kinds):
        results[kind] = result
        if len(results) % 50 == 0:
            print(f"{len(results)} of {len(kinds)} types", file=sys.stderr)
    summary = {"transformers": transformers.__version__, **summarise(results)}
    for why, failed in summary["failures"].items():
        print(f"not built: {len(failed):3}  {why}  ({', '.join(failed[:4])}{', ...' if len(failed) > 4 else ''})")
    for kind, result in reversed(worst(summary, len(kinds) if options.types else 20)):
        print(f"{result['right']:5} of {result['scored']:5} right  {kind}")
        for what, n in result["wrong"].items():
            print(f"      {n:4} x {what}")
    print(f"{summary['built']} of {summary['registered']} types built, mean score {percent(summary['mean'])}")
    if not options.types:
        options.out.write_text(json.dumps(summary, indent=1) + "\n")
        print(f"written: {options.out}", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Score role recognition on transformers' model types.")
    parser.add_argument("--types", help="model types, comma-separated; default all")
    parser.add_argument("--out", type=Path, default=OUT, help="where the JSON goes")
    pages.add_options(parser, DOCS)
    return parser.parse_args()


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)
