"""The subject of an audit: a report, and everything else that was read for the checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from specdiag.auditing.config_damage import without_config
from specdiag.auditing.records import DecayAnswer, TokenTable
from specdiag.auditing.reference import Reference
from specdiag.auditing.stacks import Layer, stacks
from specdiag.auditing.thresholds import Check, Observation
from specdiag.records import ModuleRecord
from specdiag.reference.ranges import ReferenceRanges
from specdiag.report import SpectralReport

if TYPE_CHECKING:
    from specdiag.auditing.adapter_screen import Screen
    from specdiag.checkpoint.adapters.defects import Defect
    from specdiag.checkpoint.shards import RepeatedKey
    from specdiag.function.alarm_records import Alarms


class Identity(NamedTuple):
    """The answer whether a checkpoint holds the values of its baseline.

    Attributes:
        equal: a description of what is equal; None where something differs, or nothing can be said.
        unknown: the reason why nothing can be said; None where the answer is known.
    """

    equal: str | None = None
    unknown: str | None = None


@dataclass(frozen=True)
class Subject:
    """Everything that a check may look at.

    Attributes:
        report: the records of the weights.
        checks: every check by id, with the thresholds that hold.
        is_checkpoint: whether the weights themselves were given, and not only a report.
        config: config.json, empty without one.
        repeated: keys that config.json gives twice.
        reference: how transformers' own model of config.json differs, or why there is none; None for a report.
        n_others: number of small tensors that were read; None where they are not listed.
        others: observations on those tensors.
        files: the weight file of each matrix and tensor, empty for a report.
        beside: observations on the other weight files of the repository.
        other_files: what was done with each of these files; None where they were not looked for.
        names: every file of the folder or repository; None where one was picked, and for all else.
        adapter: the adapter_config.json of an adapter; None where the source is none.
        defects: what it lacks, and what PEFT would not find of it.
        updates: keys of the rows that are an adapter's updates.
        screens: what was measured of these updates.
        baseline: the report of the baseline, where there is one.
        identity: the answer whether anything changed since the baseline, where there is one.
        decay: the answer on a stated decay, where one was stated.
        tokens: the tables of tokens, where they were asked for.
        alarms: what the weights say of the outputs, where that was asked for.
        ranges: the numbers of other models, to hold the matrices against.
    """

    report: SpectralReport
    checks: Mapping[str, Check]
    is_checkpoint: bool = False
    config: Mapping[str, object] = field(default_factory=dict[str, object])
    repeated: tuple[RepeatedKey, ...] = ()
    reference: Reference | None = None
    n_others: int | None = None
    others: tuple[Observation, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    beside: tuple[Observation, ...] = ()
    other_files: Mapping[str, str] | None = None
    names: tuple[str, ...] | None = None
    adapter: Mapping[str, object] | None = None
    defects: tuple[Defect, ...] = ()
    updates: frozenset[str] = frozenset()
    screens: tuple[Screen, ...] = ()
    baseline: SpectralReport | None = None
    identity: Identity | None = None
    decay: DecayAnswer | None = None
    tokens: tuple[TokenTable, ...] | None = None
    alarms: Alarms | None = None
    ranges: ReferenceRanges | None = None

    @property
    def config_name(self) -> str:
        """Name of the settings that give the sizes of the model: config.json, or the metadata of a GGUF file."""
        files = self.report.source.files
        return "the metadata of the GGUF file" if files and files[0].endswith(".gguf") else "config.json"

    @property
    def without_config(self) -> str:
        """Sentence that says why the configuration gave nothing."""
        return without_config(self.config_name, self.report.provenance.notes)

    def is_of_base(self, record: ModuleRecord) -> bool:
        """Tell whether a row is a weight of an adapter's base model that the adapter leaves as it is.

        Args:
            record: of the report.
        """
        if self.adapter is None or self.report.source.base is None:
            return False
        return record.name not in self._adapted and record.key not in self.files

    @cached_property
    def stacks(self) -> dict[str, dict[int, Layer]]:
        """The numbered layers that hold attention, by the name before their number."""
        return stacks(self.report)

    @cached_property
    def _adapted(self) -> frozenset[str]:
        return frozenset(screen.name for screen in self.screens)
