"""What adapter_config.json says: scales, ranks, the model that the adapter was made for, what is not understood."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from specdiag.checkpoint.folder import Folder
from specdiag.errors import SourceError

_FILE = "adapter_config.json"
_UNDERSTOOD = ("LORA", "ADALORA")
_VARIANTS = ("use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config")
_MOVES_WEIGHTS = re.compile(r"(pissa|olora|corda|loftq|lora_ga)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The settings of one adapter in PEFT's words; empty where there are none.

    Attributes:
        settings: adapter_config.json.
    """

    settings: Mapping[str, Any]

    @property
    def not_understood(self) -> str | None:
        """The method or variant that is no product of two factors, None for LoRA and AdaLoRA."""
        kind = self.settings.get("peft_type")
        if kind is not None and kind not in _UNDERSTOOD:
            return str(kind)
        return next((f"LoRA with {name}" for name in _VARIANTS if self.settings.get(name)), None)

    @property
    def moved(self) -> str | None:
        """The initialisation that moved a part of W into the factors, None for the usual ones.

        There the base model is W less the initial product, so neither W + BA nor BA is what it seems.
        """
        match = _MOVES_WEIGHTS.match(str(self.settings.get("init_lora_weights")))
        return match[1].lower() if match else None

    @property
    def base(self) -> str | None:
        """The model that it was made for, as `org/name` or `org/name@revision`."""
        name, revision = self.settings.get("base_model_name_or_path"), self.settings.get("revision")
        if not isinstance(name, str) or not name:
            return None
        return f"{name}@{revision}" if isinstance(revision, str) and "@" not in name else name

    @property
    def transposed(self) -> bool:
        """Whether its modules store (in, out), as GPT-2's Conv1D does."""
        return self.settings.get("fan_in_fan_out") is True

    def rank(self, module: str) -> int | None:
        """The rank of a module's update, None where the config does not say it.

        Raises:
            SourceError: a pattern is no regular expression.
        """
        kept = _mapping(self.settings.get("rank_pattern"))
        if self.settings.get("peft_type") == "ADALORA":
            chosen = next((value for name, value in kept.items() if name.startswith(f"{module}.")), None)
            kept_flags = cast("list[Any]", chosen) if isinstance(chosen, list) else None
            rank = self.settings.get("init_r") if kept_flags is None else kept_flags.count(True)
        else:
            rank = _by_pattern(kept, module, self.settings.get("r"))
        return rank if isinstance(rank, int) else None

    def scale(self, module: str, rank: int) -> float | None:
        """What multiplies the product of the factors, None where the config does not say it.

        alpha/r (arXiv 2106.09685, section 4.1), alpha/sqrt(r) for rsLoRA (arXiv 2312.03732); AdaLoRA divides by the
        rank that it began with, plus 1e-5 (PEFT's AdaLoraLayer).
        """
        alpha = _by_pattern(_mapping(self.settings.get("alpha_pattern")), module, self.settings.get("lora_alpha"))
        if not isinstance(alpha, (int, float)):
            return None
        if self.settings.get("peft_type") == "ADALORA":
            begun = self.settings.get("init_r")
            begun = begun if isinstance(begun, int) else rank
            return (alpha if alpha > 0 else float(rank)) / (begun + 1e-5)
        return alpha / math.sqrt(rank) if self.settings.get("use_rslora") else alpha / rank

    def tokens(self, module: str) -> tuple[int, ...] | None:
        """The rows of a table that trainable tokens replace, None where the config does not list them."""
        listed = self.settings.get("trainable_token_indices")
        if isinstance(listed, dict):
            listed = next((rows for name, rows in _mapping(listed).items() if f".{module}".endswith(f".{name}")), None)
        rows = cast("list[Any]", listed) if isinstance(listed, list) else []
        return tuple(rows) if rows and all(isinstance(row, int) for row in rows) else None

    def targets_parameter(self, module: str) -> bool:
        """Whether the update is that of a parameter which is no module's weight, such as stacked experts."""
        targets = self.settings.get("target_parameters")
        named = [str(target) for target in cast("list[Any]", targets)] if isinstance(targets, list) else []
        return any(
            leaf != "weight" and f".{module}".endswith(f".{parent}")
            for parent, _, leaf in (target.rpartition(".") for target in named)
        )


def read_adapter_config(folder: Folder, weights: str) -> AdapterConfig:
    """The adapter_config.json beside a file of weights, empty without one.

    Raises:
        SourceError: it cannot be read.
    """
    name = f"{weights.rpartition('/')[0]}/{_FILE}".lstrip("/")
    return AdapterConfig(folder.json(name, folder.label(name)) if folder.has(name) else {})


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's get_pattern_key: keys are regular expressions on the end of the module's path, the first that fits."""
    for key, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        except re.error as error:
            raise SourceError(f"{_FILE} is damaged: '{key}' is no regular expression ({error})") from error
    return default


def _mapping(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
