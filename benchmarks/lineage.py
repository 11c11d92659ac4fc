"""Verdicts of `specdiag lineage` where the truth is known: how often they are right, and every miss.

    python benchmarks/lineage.py            # writes benchmarks/results/lineage.json and prints the tables
    python benchmarks/lineage.py --only rxnfp,minilm
    python benchmarks/lineage.py --models FOLDER    # small llamas that lineage_models.py trained before

Real checkpoints (rxnfp with two real fine-tunes, MiniLM, SmolLM2; tests/assets.py) and small llamas that are trained
here get other forms, codes, noise, pruning and merges (lineage_changes.py). Strangers are models of other seeds,
shuffled entries, and matrices with the same spectra and other vectors. With --only the other rows of the file stay.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lineage_changes as changes
import lineage_models
import torch
from lineage_changes import Shape, State
from safetensors.torch import load_file, save_file

import specdiag
from specdiag.system.distributions import version

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
import assets

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "lineage.json"
SAME, KIN, NONE = "same function", "derived", "no relation"
VERDICTS = ("same function", "derived", "undecided", "no relation shown")


class Model(NamedTuple):
    """A model in memory with its config."""

    state: State
    config: dict[str, Any]
    shape: Shape


def write(model: Model, state: State, folder: Path) -> Path:
    """Write a state as a checkpoint."""
    folder.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    layers = {int(name.split("layers.")[1].split(".")[0]) for name in state if "layers." in name}
    config = model.config | ({"num_hidden_layers": len(layers)} if layers else {})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def bert(name: str, file: str, folder: str = "") -> Model:
    """A BERT among the assets."""
    place = assets.fetch(name) / folder
    state = load_file(place / file) if file.endswith(".safetensors") else torch.load(place / file, map_location="cpu")
    config = json.loads((place / "config.json").read_text()) | {"model_type": "bert"}
    floats = {n: v.clone() for n, v in state.items() if v.is_floating_point()}
    return Model(floats, config, Shape(config["num_attention_heads"], config["num_attention_heads"], is_llama=False))


def llama(folder: Path) -> Model:
    """A llama that transformers wrote."""
    config = json.loads((folder / "config.json").read_text())
    shape = Shape(config["num_attention_heads"], config["num_key_value_heads"], is_llama=True)
    return Model(load_file(folder / "model.safetensors"), config, shape)


def smollm2() -> Model:
    """SmolLM2 as transformers decodes it from GGUF."""
    import transformers

    folder = assets.fetch("smollm2-gguf")
    (file,) = folder.glob("*.gguf")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
    config = model.config.to_dict() | {"dtype": "float32"}
    state = {n: v.detach().clone() for n, v in model.state_dict().items() if n != "lm_head.weight"}
    return Model(state, config, Shape(config["num_attention_heads"], config["num_key_value_heads"], is_llama=True))


def changed(model: Model, *, few: bool = False) -> Iterator[tuple[str, str, Callable[[State], State]]]:
    """Name, truth and function of every change of one model."""
    yield "other form", SAME, changes.other_form(model.shape, 1)
    yield (
        "bf16, other form, other prefix",
        SAME,
        lambda s: changes.renamed(changes.bf16(changes.other_form(model.shape, 2)(s))),
    )
    if model.shape.is_llama:
        yield "other form, stream turned", SAME, changes.other_form(model.shape, 3, turned=True)
    yield "int8", SAME, changes.codes(8)
    yield "int4", KIN, changes.codes(4)
    yield "pruned 50 %", KIN, changes.pruned(0.5)
    yield "entries shuffled", NONE, changes.shuffled(4)
    yield "same spectra, other vectors", NONE, changes.impostor(5)
    if few:
        return
    yield "int3", KIN, changes.codes(3)
    yield "pruned 30 %", KIN, changes.pruned(0.3)
    yield "pruned 70 %", KIN, changes.pruned(0.7)
    yield "pruned 50 %, other form", KIN, lambda s: changes.other_form(model.shape, 6)(changes.pruned(0.5)(s))
    for size in (0.01, 0.05, 0.2, 0.5, 1.0):
        yield f"noise {size:.0%}", KIN, changes.noise(size, 7)
    for size in (0.01, 0.05, 0.2, 0.5):
        yield f"low rank {size:.0%}", KIN, changes.low_rank(size, 8, 8)


def row(kind: str, name: str, truth: str, found: specdiag.Lineage, seconds: float) -> dict[str, Any]:
    """A row of the results."""
    relation = found.relations[0]
    names = ("verdict", "basis", "attention", "mlp", "worst", "ratio", "cosine")
    return {"model": kind, "change": name, "truth": truth, "seconds": round(seconds, 2)} | {
        key: getattr(relation, key) for key in names
    }


class Bench:
    """Runs cases in a temporary folder, and keeps their rows."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows, self.mixes = folder, [], []  # type: ignore[var-annotated]
        self.n = 0

    def place(self) -> Path:
        """A new folder."""
        self.n += 1
        return self.folder / f"model{self.n}"

    def pair(self, kind: str, name: str, truth: str, a: Path, b: Path) -> None:
        """Compare two models."""
        start = time.perf_counter()
        found = specdiag.lineage(a, b, cache=self.folder / "cache")
        self.rows.append(row(kind, name, truth, found, time.perf_counter() - start))
        sys.stderr.write(f"{kind}, {name}: {truth} > {found.relations[0].verdict}\n")

    def all_changes(self, kind: str, model: Model, *, few: bool = False) -> Path:
        """Compare a model with every change of it."""
        original = write(model, model.state, self.place())
        self.pair(kind, "itself", SAME, original, original)
        for name, truth, change in changed(model, few=few):
            self.pair(kind, name, truth, original, write(model, change(model.state), self.place()))
        return original

    def mix(self, kind: str, name: str, share: float, model: Model, state: State, parents: tuple[Path, Path]) -> None:
        """Look for the share of the first parent."""
        child = write(model, state, self.place())
        found = specdiag.lineage(*parents, child, cache=self.folder / "cache")
        mix = next((m for m in found.mixes if m.model == "C"), None)
        wrong = [m.model for m in found.mixes if m.model != "C"]
        self.mixes.append(
            {"model": kind, "merge": name, "share": share, "found": mix and mix.shares[0],
             "unexplained": mix and mix.unexplained, "wrong": wrong,
             "layers": mix and [round(x.shares[0], 3) for x in mix.layers]}
        )  # fmt: skip
        sys.stderr.write(f"{kind}, {name}: {share} > {mix and mix.shares[0]}\n")

    def merges(self, kind: str, base: Model, first: Model, second: Model) -> None:
        """Merge two fine-tunes of a base in several ways."""
        parents = write(first, first.state, self.place()), write(second, second.state, self.place())
        form = changes.other_form(base.shape, 9)
        for share in (0.5, 0.3, 0.9):
            self.mix(kind, "linear", share, base, changes.linear(first.state, second.state, share), parents)
        self.mix(kind, "slerp", 0.4, base, changes.slerp(first.state, second.state, 0.4), parents)
        linear = changes.linear(first.state, second.state, 0.4)
        self.mix(kind, "linear, other form", 0.4, base, form(linear), parents)
        self.mix(kind, "linear, int8", 0.4, base, changes.codes(8)(linear), parents)
        self.mix(kind, "linear, int4", 0.4, base, changes.codes(4)(linear), parents)
        for density in (0.2, 0.5, 1.0):
            merged = changes.ties(base.state, first.state, second.state, density)
            self.mix(kind, f"TIES {density:.0%}", -1, base, merged, parents)
        half = base.config["num_hidden_layers"] // 2
        self.mix(kind, "layers of both", 0.5, base, changes.layers_of_both(first.state, second.state, half), parents)
        self.mix(kind, "no merge: the base", -1, base, base.state, parents)


def rxnfp(bench: Bench) -> None:
    """A real base with two real fine-tunes."""
    file = "pytorch_model.bin"
    base, tuned, other = (bert("rxnfp", file, n) for n in ("bert_pretrained", "bert_ft", "bert_ft_10k_25s"))
    original = bench.all_changes("rxnfp", base)
    for name, model in (("fine-tune ft", tuned), ("fine-tune ft_10k", other)):
        bench.pair("rxnfp", name, KIN, original, write(model, model.state, bench.place()))
    form = changes.other_form(tuned.shape, 10)(tuned.state)
    bench.pair("rxnfp", "fine-tune ft, other form", KIN, original, write(tuned, form, bench.place()))
    shared = [{k.removeprefix("bert."): v for k, v in m.state.items()} for m in (base, tuned, other)]
    common = set.intersection(*(set(s) for s in shared))
    models = [Model({k: s[k] for k in sorted(common)}, base.config, base.shape) for s in shared]
    bench.merges("rxnfp", *models)


def minilm(bench: Bench) -> None:
    """A real encoder."""
    bench.all_changes("MiniLM", bert("minilm", "model.safetensors"))


def real_llama(bench: Bench) -> None:
    """SmolLM2, also as the GGUF that it comes from."""
    model = smollm2()
    original = bench.all_changes("SmolLM2", model, few=True)
    bench.pair("SmolLM2", "its GGUF", SAME, original, assets.fetch("smollm2-gguf"))


def trained(bench: Bench, folder: Path) -> None:
    """Small llamas of several seeds."""
    lineage_models.build(folder, sys.stderr.write)
    for seed in range(lineage_models.SEEDS):
        base = llama(folder / f"base{seed}")
        kind = f"llama {seed}"
        original = bench.all_changes(kind, base)
        tuned = [llama(folder / f"base{seed}-{name}") for name in ("tuned-a", "tuned-b", "tuned-long")]
        places = [write(model, model.state, bench.place()) for model in tuned]
        for name, place in zip(("fine-tune a", "fine-tune b", "trained on"), places, strict=True):
            bench.pair(kind, name, KIN, original, place)
        bench.pair(kind, "two fine-tunes of one base", KIN, places[0], places[1])
        fewer = write(base, changes.without_layers(tuned[0].state, {3}), bench.place())
        bench.pair(kind, "fine-tune a without a layer", KIN, original, fewer)
        stranger = llama(folder / f"base{(seed + 1) % lineage_models.SEEDS}")
        strange = write(stranger, stranger.state, bench.place())
        bench.pair(kind, "another seed", NONE, original, strange)
        other = llama(folder / f"base{(seed + 1) % lineage_models.SEEDS}-tuned-a")
        bench.pair(kind, "a fine-tune of another seed", NONE, original, write(other, other.state, bench.place()))
        less = write(base, changes.without_layers(stranger.state, {2}), bench.place())
        bench.pair(kind, "another seed without a layer", NONE, original, less)
        both = changes.layers_of_both(base.state, stranger.state, 3)
        bench.pair(kind, "half of the layers another seed's", KIN, original, write(base, both, bench.place()))
        new = lineage_models.new_model(100 + seed)
        untrained = {n: v.detach().clone() for n, v in new.state_dict().items() if n in base.state}
        bench.pair(kind, "untrained", NONE, original, write(base, untrained, bench.place()))
        bench.merges(kind, base, tuned[0], tuned[1])


def tables(results: dict[str, Any]) -> str:
    """The confusion table, the misses and the merges, in markdown."""
    counts = Counter((r["truth"], r["verdict"]) for r in results["pairs"])
    lines = [f"| truth | {' | '.join(VERDICTS)} |", f"|---|{'---|' * len(VERDICTS)}"]
    lines += [f"| {truth} | {' | '.join(str(counts[truth, v]) for v in VERDICTS)} |" for truth in (SAME, KIN, NONE)]
    right = {SAME: "same function", KIN: "derived", NONE: "no relation shown"}
    lines += ["", "| miss | truth | verdict | attention | of unequal | cosine |", "|---|---|---|---|---|---|"]
    for r in results["pairs"]:
        if r["verdict"] != right[r["truth"]]:
            numbers = " | ".join("" if r[k] is None else f"{r[k]:.3f}" for k in ("attention", "ratio", "cosine"))
            lines.append(f"| {r['model']}, {r['change']} | {r['truth']} | {r['verdict']} | {numbers} |")
    lines += ["", "| merge | share | found | unexplained |", "|---|---|---|---|"]
    for m in results["mixes"]:
        found = "none" if m["found"] is None else f"{m['found']:.3f}"
        left = "" if m["unexplained"] is None else f"{m['unexplained']:.3f}"
        lines.append(f"| {m['model']}, {m['merge']} | {'' if m['share'] < 0 else m['share']} | {found} | {left} |")
    return "\n".join(lines)


def updated(file: Path, bench: Bench) -> dict[str, Any]:
    """The results of a file, those of the models that were run replaced."""
    old = json.loads(file.read_text()) if file.exists() else {"pairs": [], "mixes": []}
    new = {"pairs": bench.rows, "mixes": bench.mixes}
    models = {r["model"] for r in bench.rows}
    kept = {key: [r for r in old[key] if r["model"] not in models] for key in new}
    return {"specdiag": version("specdiag")} | {key: kept[key] + new[key] for key in new}


def main() -> None:
    """Run all cases, or those named."""
    parser = argparse.ArgumentParser(description="Verdicts of specdiag lineage where the truth is known.")
    parser.add_argument("--only", default="rxnfp,minilm,smollm2,trained")
    parser.add_argument("--models", type=Path, help="folder of trained llamas")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        kinds: dict[str, Callable[[], None]] = {
            "rxnfp": lambda: rxnfp(bench),
            "minilm": lambda: minilm(bench),
            "smollm2": lambda: real_llama(bench),
            "trained": lambda: trained(bench, options.models or Path(scratch) / "trained"),
        }
        for name in options.only.split(","):
            kinds[name]()
            results = updated(options.out, bench)
            options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(tables(json.loads(options.out.read_text())))


if __name__ == "__main__":
    main()
