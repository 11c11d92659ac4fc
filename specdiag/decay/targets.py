"""Choice of the Parameters that a plan covers, by role and not by position, and of the column that it reads."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from specdiag.decay.plan import Basis
from specdiag.errors import UsageError
from specdiag.records import ROLES, Family, ModuleRecord, Role, Settings, stored_role
from specdiag.text import checks
from specdiag.text.globs import check_globs, chosen

DEFAULT_ROLES: tuple[Role, ...] = ("q", "k", "v", "kv", "o", "gate", "up", "down")
"""The projections of attention and MLP. Biases, norms, embeddings, heads and routers keep the user's own decay."""

_LLAMA = re.compile(
    r"(?:model\.)?layers\.(?P<layer>\d+)\."
    r"(?P<projection>self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|down|up)_proj)\.weight|lm_head\.weight|"
    r"(?:model\.)?(?:embed_tokens|norm)\.weight"
)
_PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
                "mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")  # fmt: skip

_COLUMNS: Mapping[str, str] = {
    "alpha": "alpha",
    "square": "square_alpha",
    "farms": "alpha",
    "function": "balanced_alpha",
    "frobenius_norm": "frobenius_norm",
    "spectral_norm": "spectral_norm",
}
"""Number of a `ModuleRecord` that each basis reads."""


@dataclass(frozen=True, slots=True)
class DecayTarget:
    """A Parameter whose decay is set, with the records of its parts."""

    name: str
    records: tuple[ModuleRecord, ...]

    @property
    def role(self) -> Role | None:
        """The role of all its parts, None where they differ."""
        first = stored_role(self.records[0].role)
        return first if all(record.role == first for record in self.records) else None

    @property
    def family(self) -> Family:
        """The family, which fused and stacked parts share."""
        return self.records[0].family

    @property
    def layer(self) -> int | None:
        """The block index."""
        return self.records[0].layer

    @property
    def component(self) -> str | None:
        """The piece of the model."""
        return self.records[0].component

    @property
    def block(self) -> tuple[str | None, int] | None:
        """The component and the number of its block; None outside of blocks."""
        return None if self.layer is None else (self.component, self.layer)

    @property
    def n_parameters(self) -> int:
        """Number of values."""
        return sum(record.rows * record.cols * record.n_slices for record in self.records)

    def mean(self, column: str) -> float | None:
        """Return the mean of a column over the parts.

        Args:
            column: field of `ModuleRecord` that holds a number, such as `alpha`.

        Returns:
            The mean over the parts that have a value; None where no part has one, or a part could not be measured.
        """
        if any(record.status in ("nonfinite", "failed") for record in self.records):
            return None
        known = [value for record in self.records if (value := getattr(record, column)) is not None]
        return fmean(known) if known else None


def decay_targets(
    records: Sequence[ModuleRecord],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    roles: Sequence[str] = (),
) -> list[DecayTarget]:
    """Choose the Parameters that a plan covers.

    Args:
        records: of a report.
        include: globs on names; only these.
        exclude: globs on names; not these.
        roles: roles that take part, instead of the projections of attention and MLP.

    Returns:
        One target for each Parameter, in stored order.

    Raises:
        UsageError: a role is unknown, a glob matches nothing, or no Parameter is left.
    """
    checks.each_of("roles", roles, ROLES)
    names = [(record.key, record.name) for record in records]
    check_globs("include", include, names, "matrices")
    check_globs("exclude", exclude, names, "matrices")
    wanted = tuple(roles) or DEFAULT_ROLES
    selected = [
        record
        for record in records
        if record.role in wanted and not record.parametrized and chosen((record.key, record.name), include, exclude)
    ]
    if not selected and (computed := [record for record in records if record.parametrized and record.role in wanted]):
        raise UsageError(
            f"no decay can be planned: {len(computed)} weights such as {computed[0].name} are computed from other "
            "Parameters (weight norm, spectral norm, pruning), whose decay does not shrink them alike"
        )
    if not selected:
        raise UsageError(
            f"none of {len(records)} matrices takes part: a plan speaks of {', '.join(wanted)}; name others with roles="
        )
    return _by_parameter(selected)


def reference_targets(records: Sequence[ModuleRecord], linears: Sequence[str] | None = None) -> list[DecayTarget]:
    """Choose the Parameters as the released AlphaDecay code does: every Linear but the first and the last.

    Both sides must be at least 50. The embedding of LLaMA is no Linear, so `layers.0.self_attn.q_proj` and `lm_head`
    are left out.

    Args:
        records: of a report.
        linears: the names of all Linear and Conv2d weights of the live model in definition order; None for a
            checkpoint, whose names must be LLaMA's.

    Raises:
        UsageError: the definition order is unknown: the names are not LLaMA's and there is no live model.
    """
    by_name = {target.name: target for target in _by_parameter(records)}
    order = list(linears) if linears is not None else _llama_order(by_name)
    return [
        by_name[name]
        for name in order[1:-1]
        if name in by_name and min(by_name[name].records[0].rows, by_name[name].records[0].cols) >= 50
    ]


def column(basis: Basis, settings: Settings) -> str:
    """Name the column of a report that a basis reads.

    Args:
        basis: value that the rule of a plan reads.
        settings: of the report.

    Returns:
        A field of `ModuleRecord`.

    Raises:
        UsageError: the basis is unknown, cannot be compared across shapes, or needs a report of another tail rule or
            one with the function.
    """
    check_basis(basis)
    if basis == "function" and not settings.function:
        raise UsageError(
            "basis='function' plans on the balanced form, which this report lacks: analyze the checkpoint with "
            "function=True"
        )
    if (basis == "farms") != (settings.tail == "farms") and basis in ("farms", "alpha"):
        reason = f"this report was made with tail='{settings.tail}'"
        raise UsageError(
            f"{reason}; basis='farms' needs one made with tail='farms'"
            if basis == "farms"
            else f"{reason}; choose basis='farms'"
        )
    return _COLUMNS[basis]


def check_basis(basis: object) -> None:
    """Check the name of a basis.

    Args:
        basis: an argument of a user.

    Raises:
        UsageError: the basis is unknown, or cannot be compared across shapes.
    """
    if isinstance(basis, str) and basis == "rho":  # a common request
        raise UsageError(
            "rho compares a matrix with noise of its own shape and cannot be compared across shapes (the same "
            "structure scores .68 in a square and .33 at 8:1); choose basis='square'"
        )
    checks.one_of("basis", basis, _COLUMNS)


def random_value(target: DecayTarget, basis: Basis) -> float | None:
    """Compute the basis for random matrices of the target's shapes, whose entries have variance 1.

    Args:
        target: only its shapes and stored null values are used.
        basis: value that the rule of a plan reads.

    Returns:
        The mean over the parts; None where no part has a value.
    """
    values = [value for record in target.records if (value := _random_value(record, basis)) is not None]
    return fmean(values) if values else None


def _random_value(record: ModuleRecord, basis: Basis) -> float | None:
    match basis:
        case "alpha" | "farms":
            return record.alpha_null
        case "square" | "function":
            from specdiag.spectra.square import SQUARE_NULL

            # It still depends on the size by 0.5/n, which is less than its spread over random matrices.
            value = record.square_alpha if basis == "square" else record.balanced_alpha
            return None if value is None else SQUARE_NULL
        case "frobenius_norm":
            return (record.rows * record.cols * record.n_slices) ** 0.5
        case "spectral_norm":
            return record.rows**0.5 + record.cols**0.5


def _by_parameter(records: Iterable[ModuleRecord]) -> list[DecayTarget]:
    groups: dict[str, list[ModuleRecord]] = defaultdict(list)
    for record in records:
        groups[record.name].append(record)
    return [DecayTarget(name, tuple(group)) for name, group in groups.items()]


def _llama_order(names: Iterable[str]) -> list[str]:
    """Sort Linear weights in the order in which LLaMA defines them; lm_head comes last, stored or tied."""
    matched = {name: _LLAMA.fullmatch(name) for name in names}
    other = next((name for name, match in matched.items() if match is None), None)
    if other is not None or not any(match and match["layer"] for match in matched.values()):
        raise UsageError(
            "compat='reference' drops the first and the last Linear in definition order, which a checkpoint does not "
            f"say: it needs LLaMA's names, and this one has '{other}'; pass the live model to specdiag.recommend"
        )
    blocks = [
        (int(m["layer"]), _PROJECTIONS.index(m["projection"]), name) for name, m in matched.items() if m and m["layer"]
    ]
    return [*(name for _, _, name in sorted(blocks)), "lm_head.weight"]
