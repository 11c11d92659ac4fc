"""adapter_config.json: scales, ranks, the model that the adapter was made for, settings that are not understood."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from specdiag.checkpoint.adapters.patterns import Patterns
from specdiag.checkpoint.folder import Folder
from specdiag.checkpoint.long_names import brief
from specdiag.errors import SourceError
from specdiag.files import Table

TOKENS = "trainable_token_indices"
"""The entry that lists trained rows of tables."""
_FILE = "adapter_config.json"
_UNDERSTOOD = ("LORA", "ADALORA", "TRAINABLE_TOKENS")
_VARIANTS = ("use_qalora", "use_bdlora", "kasa_config", "monteclora_config", "arrow_config")
_LARGEST_ALPHA = 1e30
_MOVES_WEIGHTS = re.compile(r"(pissa|olora|corda|loftq|lora_ga)", re.IGNORECASE)


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of one adapter in PEFT's words; empty where there are none.

    Attributes:
        settings: adapter_config.json.
    """

    settings: Mapping[str, object]

    @property
    def not_understood(self) -> str | None:
        """The method or variant that is no product of two factors; None for LoRA, AdaLoRA and tokens."""
        kind = self.settings.get("peft_type")
        if kind is not None and kind not in _UNDERSTOOD:
            return brief(str(kind))
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
    def prunes(self) -> bool:
        """True where ranks fall during the training, down to none."""
        return self.settings.get("peft_type") == "ADALORA"

    @property
    def has_magnitudes(self) -> bool:
        """True where every update has DoRA's magnitudes.

        Raises:
            SourceError: the config says neither true nor false.
        """
        return self._flag("use_dora")

    @property
    def transposed(self) -> bool:
        """True where its modules store (in, out), as GPT-2's Conv1D does.

        Raises:
            SourceError: the config says neither true nor false.
        """
        return self._flag("fan_in_fan_out")

    def rank(self, module: str) -> int | None:
        """Look up the rank of a module's update.

        Args:
            module: its name in the base model.

        Returns:
            The rank, None where the config does not say it.

        Raises:
            SourceError: a pattern cannot be followed, or the rank is no whole number.
        """
        if self.prunes:
            flags = self._flags(module)
            return self._whole("init_r", self.settings.get("init_r")) if flags is None else flags.count(True)
        default = self.settings.get("r")
        rank = self._ranks.first(module, default)
        return self._whole("r" if rank is default else "rank_pattern", rank)

    def scale(self, module: str, rank: int) -> float | None:
        """Compute the factor by which the product of the two factors is multiplied.

        alpha/r (arXiv 2106.09685, section 4.1), alpha/sqrt(r) for rsLoRA (arXiv 2312.03732); AdaLoRA divides by the
        rank that it began with, plus 1e-5 (PEFT's AdaLoraLayer).

        Args:
            module: its name in the base model.
            rank: r, number of rows of A.

        Returns:
            The factor, None where the config does not say alpha.

        Raises:
            SourceError: a pattern cannot be followed, or alpha or a rank is no number that a scale can be made of.
        """
        default = self.settings.get("lora_alpha")
        alpha = self._alphas.first(module, default)
        if alpha is None and "lora_alpha" not in self.settings:
            return None
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) <= _LARGEST_ALPHA:
            key = "lora_alpha" if alpha is default else "alpha_pattern"
            raise _damaged(key, alpha, "no number that a scale can be made of")
        if self.prunes:
            first_rank = self._whole("init_r", self.settings.get("init_r"))
            return (alpha if alpha > 0 else float(rank)) / ((rank if first_rank is None else first_rank) + 1e-5)
        return alpha / math.sqrt(rank) if self._flag("use_rslora") else alpha / rank

    def tokens(self, module: str) -> tuple[int, ...] | None:
        """Look up the rows of a table that trainable tokens replace.

        Args:
            module: the embedding, by its name in the base model.

        Returns:
            The rows, None where the config does not list them.
        """
        entry = self.settings.get(TOKENS if self.settings.get("peft_type") != "TRAINABLE_TOKENS" else "token_indices")
        if isinstance(entry, dict):
            of_modules = cast("Table", entry)
            entry = next((of_modules[end] for end in _ends(module) if end in of_modules), None)
        rows = cast("list[object]", entry) if isinstance(entry, list) else []
        whole = tuple(row for row in rows if type(row) is int and 0 <= row < 1 << 31)
        return whole if rows and len(whole) == len(rows) else None

    def targets_parameter(self, module: str) -> bool:
        """Tell whether an update changes a parameter other than a module's `weight`, such as stacked experts.

        Args:
            module: its name in the base model.
        """
        return bool(self._parameters) and any(end in self._parameters for end in _ends(module))

    @cached_property
    def _ranks(self) -> Patterns:
        return Patterns(_mapping("rank_pattern", self.settings.get("rank_pattern")))

    @cached_property
    def _alphas(self) -> Patterns:
        return Patterns(_mapping("alpha_pattern", self.settings.get("alpha_pattern")))

    @cached_property
    def _kept(self) -> list[str]:
        return sorted(_mapping("rank_pattern", self.settings.get("rank_pattern")))

    def _flags(self, module: str) -> list[object] | None:
        """Look up which ranks AdaLoRA kept of a module: the entry is named after one of its tensors."""
        place = bisect_left(self._kept, f"{module}.")
        if place == len(self._kept) or not self._kept[place].startswith(f"{module}."):
            return None
        flags = _mapping("rank_pattern", self.settings.get("rank_pattern"))[self._kept[place]]
        return cast("list[object]", flags) if isinstance(flags, list) else None

    @cached_property
    def _parameters(self) -> set[str]:
        """The modules that hold a parameter of `target_parameters` other than `weight`."""
        targets = self.settings.get("target_parameters")
        if targets is not None and not isinstance(targets, list):
            raise _damaged("target_parameters", targets, "no list of names")
        paths = map(str, cast("list[object]", targets or []))
        return {parent for parent, _, leaf in (name.rpartition(".") for name in paths) if leaf != "weight"}

    def _flag(self, key: str) -> bool:
        """Read a flag, False where it is absent."""
        value = self.settings.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise _damaged(key, value, "neither true nor false")

    def _whole(self, key: str, value: object) -> int | None:
        """Check that `value` is a rank or absent."""
        if value is None or (type(value) is int and 0 <= value < 1 << 31):
            return value
        raise _damaged(key, value, "no rank")


def read_adapter_config(folder: Folder, weights: str) -> AdapterConfig:
    """Read the adapter_config.json beside a file of weights.

    Args:
        folder: the directory or repository.
        weights: the file of weights, relative to it.

    Returns:
        The settings, empty where there is no such file.

    Raises:
        SourceError: it cannot be read.
    """
    name = f"{weights.rpartition('/')[0]}/{_FILE}".lstrip("/")
    return AdapterConfig(folder.json(name, folder.label(name)) if folder.has(name) else {})


def _damaged(key: str, value: object, problem: str) -> SourceError:
    return SourceError(f"{_FILE} says {key} {brief(repr(value))}, which is {problem}: fetch it again, or correct it")


def _ends(module: str) -> Iterator[str]:
    """Yield a path without its first 0, 1, 2, ... segments."""
    while module:
        yield module
        module = module.partition(".")[2]


def _mapping(key: str, value: object) -> Table:
    if value is None or isinstance(value, dict):
        return cast("Table", value or {})
    raise _damaged(key, value, "no object of module names")
