"""Results of the zoo in Markdown for docs/zoo.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pages import table, update

NAMED = {
    "Llama": "llama", "Mistral": "mistral", "Mixtral": "mixtral", "Qwen2": "qwen2", "Qwen2-MoE": "qwen2_moe",
    "Qwen3": "qwen3", "Qwen3-MoE": "qwen3_moe", "Qwen3-Next": "qwen3_next", "Gemma": "gemma", "Gemma 2": "gemma2",
    "Gemma 3": "gemma3", "Phi": "phi", "Phi-3": "phi3", "Falcon": "falcon", "GPT-2": "gpt2", "GPT-NeoX": "gpt_neox",
    "GPT-J": "gptj", "GPT-OSS": "gpt_oss", "GPT-BigCode": "gpt_bigcode", "BLOOM": "bloom", "MPT": "mpt", "OPT": "opt",
    "OLMo": "olmo", "OLMo 2": "olmo2", "Granite-MoE": "granitemoe", "BERT": "bert", "RoBERTa": "roberta",
    "ModernBERT": "modernbert", "DeBERTa": "deberta", "DeBERTa v2": "deberta-v2", "DistilBERT": "distilbert",
    "ELECTRA": "electra", "ALBERT": "albert", "T5": "t5", "Switch": "switch_transformers", "BART": "bart",
    "Whisper": "whisper", "ViT": "vit", "DINOv2": "dinov2", "CLIP": "clip", "SigLIP": "siglip", "Swin": "swin",
    "DeepSeek V2": "deepseek_v2", "DeepSeek V3": "deepseek_v3", "Llama 4": "llama4", "Mamba": "mamba",
    "Mamba 2": "mamba2", "LLaVA": "llava", "Qwen2-VL": "qwen2_vl", "Qwen2.5-VL": "qwen2_5_vl",
    "Qwen3-VL": "qwen3_vl",
}  # fmt: skip
"""The families that must be right in every scored tensor, by model type."""

OUTSIDE = ", a class outside the table"
"""How the reason ends where no line of the table of classes fits what holds a tensor."""


def share(result: Mapping[str, Any]) -> float | None:
    """The score of a type, None where nothing of it is scored."""
    return result["right"] / result["scored"] if result["scored"] else None


def worst(summary: Mapping[str, Any], n: int) -> list[tuple[str, Any]]:
    """The types that are not right throughout, the lowest score first."""
    wrong = [(kind, result) for kind, result in summary["types"].items() if result["wrong"]]
    return sorted(wrong, key=lambda item: (share(item[1]), item[0]))[:n]


def docs(summary: Mapping[str, Any]) -> str:
    """The figures for docs/zoo.md, in Markdown."""
    tensors = summary["tensors"]
    renamed = {kind: r["moved_in_file"] for kind, r in summary["types"].items() if "moved_in_file" in r}
    lines = [
        f"transformers {summary['transformers']}: {summary['registered']} model types, {summary['built']} built, "
        f"{summary['types_scored']} with tensors to score. **Mean score {percent(summary['mean'])}**. "
        f"Every role is right in {summary['perfect']} types. {tensors['scored']} of {tensors['matrices']} matrix "
        f"tensors are scored, and {tensors['right']} of these are right. No rule knows the name of "
        f"{tensors['unrecognised']}.",
        "",
        "### Named families",
        "",
        table(
            ["family", "type", "class", "scored", "of matrices", "right"],
            ([title, kind, *_row(summary["types"][kind])] for title, kind in NAMED.items()),
        ),
        "",
        "### Types with a wrong role, the worst first",
        "",
        table(
            ["type", "right", "scored", "most frequent difference"],
            ([kind, str(r["right"]), str(r["scored"]), _difference(r)] for kind, r in worst(summary, 20)),
        ),
        "",
        "### Tensors without a score",
        "",
        table(["tensors", "reason"], ([str(n), why] for why, n in _reasons(summary["not_scored"]).items())),
        "",
        "### Names in files",
        "",
        f"{len(renamed)} types are saved under other names or shapes than in memory: renamed, experts apart, "
        f"projections fused. In {sum(not found for found in renamed.values())} of them every family has the same "
        "number of parameters both ways. The others:",
        "",
        table(
            ["type", "parameters more or fewer in the file's names"],
            (
                [kind, ", ".join(f"{family} {n:+d}" for family, n in found.items())]
                for kind, found in renamed.items()
                if found
            ),
        ),
        "",
        "### Types that were not built",
        "",
        table(["types", "reason"], ([str(len(k)), _cell(why)] for why, k in summary["failures"].items())),
    ]
    return "\n".join(lines)


def _row(result: Mapping[str, Any]) -> list[str]:
    return [result["class"], str(result["scored"]), str(result["matrices"]), percent(share(result) or 0)]


def _difference(result: Mapping[str, Any]) -> str:
    return _cell(max(result["wrong"], key=result["wrong"].__getitem__))


def _reasons(counted: Mapping[str, int]) -> dict[str, int]:
    """The reasons, with all classes outside the table taken together."""
    together = Counter[str]()
    for why, n in counted.items():
        together["held by a class outside the table" if why.endswith(OUTSIDE) else why] += n
    return dict(together.most_common())


def percent(value: float) -> str:
    """Rounded down, so that only what is whole is 100 %."""
    return f"{int(value * 10000) / 100:.4g} %"


def _cell(text: str) -> str:
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"


def update_docs(path: Path, summary: Mapping[str, Any], check: bool) -> int:
    """Put the figures between the markers of a page, or with `check` say whether they stand there; an exit code."""
    source = Path("benchmarks/results/zoo.json")
    return update(path, {"zoo": docs(summary)}, source, "benchmarks/zoo.py --docs", check=check)
