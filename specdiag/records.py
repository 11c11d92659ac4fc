"""The records that travel: frozen, typed, decoded strictly. Nothing here holds a tensor or imports torch.

Units: every exponent `alpha` is a density exponent, p(lambda) ~ lambda^-alpha, of the eigenvalues
lambda = sigma(W)^2 of the smaller Gram matrix, unnormalised. A missing value is None, never -1.
"""

from __future__ import annotations

from typing import Literal, get_args

from msgspec import Struct

from specdiag.text.names import listed

Role = Literal["q", "k", "v", "kv", "o", "gate", "up", "down", "router", "embed", "head", "conv", "ssm", "other"]
FunctionRole = Literal["qk", "ov", "du"]
"""Products of two stored matrices: Q'K and O V of a head, down times up of a gated MLP."""
AnyRole = Role | FunctionRole
Form = Literal["stored", "function"]
"""`stored`: a matrix as it is stored. `function`: one by what it computes, in whatever form its weights are stored."""
Family = Literal["attention", "mlp", "embedding", "other"]
TailName = Literal["hill", "hill-paper", "ks", "fix-finger", "clip-xmax", "farms"]
"""A rule by which alpha is fitted; `spectra.tail_rules` has a record of each."""
LawName = Literal["power-law", "truncated-power-law", "exponential", "lognormal", "mp-bulk"]
"""A law that the tail of a spectrum may follow; `spectra.laws` fits each."""
Status = Literal["ok", "low_rank", "degenerate", "zero", "too_few", "nonfinite", "failed"]
SquareStatus = Literal["ok", "low_rank", "degenerate", "too_few", "imprecise", "update", "product"]

ROLES: tuple[Role, ...] = get_args(Role)
FUNCTION_ROLES: tuple[FunctionRole, ...] = get_args(FunctionRole)
FAMILIES: tuple[Family, ...] = ("attention", "mlp", "embedding", "other")
TAIL_NAMES: tuple[TailName, ...] = get_args(TailName)
LAW_NAMES: tuple[LawName, ...] = get_args(LawName)
HILL_TAILS: frozenset[TailName] = frozenset({"hill", "hill-paper"})
"""Rules that fit the whole matrix by Hill, as their table in `spectra` says: known here without importing numpy."""


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of every record that is written to disk."""


class Source(Record, frozen=True, kw_only=True):
    """Where a checkpoint came from. `str(source)` can be typed back on the command line."""

    kind: Literal["hub", "dir", "file", "report", "memory"]
    location: str
    """`org/name`, a path, or the class name of a model in memory."""
    revision: str | None = None
    """The requested branch, tag or commit."""
    commit: str | None = None
    """The commit that the revision resolved to (hub only)."""
    files: tuple[str, ...] = ()
    """The weight files that were read, relative to the location."""
    ignored: tuple[str, ...] = ()
    """Other weight files of the repository that were not read."""
    part: str | None = None
    """Keys or prefix of the one model of several that was read; None where there is one."""
    base: str | None = None
    """The model that an adapter was applied to, with its commit where it is on the hub; else None."""

    @property
    def unread(self) -> str:
        """A sentence on the other weight files beside those that were read; empty where there is none."""
        if not self.ignored:
            return ""
        return f"Read {listed(self.files, 3)}; weight files that were not read: {listed(self.ignored)}."

    def __str__(self) -> str:
        pinned = self.commit or self.revision
        return f"{self.location}@{pinned}" if self.kind == "hub" and pinned else self.location


class ModuleRole(Record, frozen=True, kw_only=True):
    """Function of a weight matrix, or of a part of a fused tensor, in its network."""

    role: AnyRole
    family: Family
    layer: int | None = None
    component: str | None = None
    """`encoder`, `decoder`, `vision`, `text`, ...; None in a model of one piece."""
    cross_attention: bool = False
    part: str | None = None
    """`q`, `gate`, `expert=3`, `expert=3.up`, `head=5.qk`; None for a tensor that is one matrix."""
    recognised: bool = True
    """False where no rule knew the name: role and family are then `other`."""
    form: Form = "stored"
    head: int | None = None
    """Head of attention, of `qk` and `ov`."""


class Skipped(Record, frozen=True, kw_only=True):
    """A stored tensor that was not analysed, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str
    part: str | None = None


class TailFit(Record, frozen=True, kw_only=True):
    """An exponent of a spectrum, with its errors and its fit."""

    tail: TailName
    status: Status
    alpha: float | None = None
    k: int | None = None
    """Number of eigenvalues in the tail, counted as the rule counts."""
    xmin: float | None = None
    """The tail's threshold, an eigenvalue."""
    ks: float | None = None
    """Kolmogorov-Smirnov distance between the tail and the fitted power law."""
    n_clipped: int | None = None
    """Largest eigenvalues that are left out, the k points being those before them; None where the rule has none."""
    se_iid: float | None = None
    """(alpha - 1)/sqrt(k): right only if the tail were iid Pareto. Eigenvalues repel: no confidence interval."""
    alpha_error: float | None = None
    """Bound on the error of alpha from floating-point arithmetic, absolute."""
    alpha_null: float | None = None
    """The same rule on the Marchenko-Pastur quantiles of this shape."""
    rho: float | None = None
    """(alpha - 1)/(alpha_null - 1): 1 like noise of this shape, below 1 heavier. Not comparable across shapes."""
    z: float | None = None
    """(alpha - mean)/sd over random matrices of this shape; None where no simulation covers it."""


class ModuleRecord(Record, frozen=True, kw_only=True):
    """Row of a report: a weight matrix, or a part of a fused or stacked tensor."""

    name: str
    part: str | None = None
    form: Form = "stored"
    role: AnyRole
    family: Family
    layer: int | None = None
    head: int | None = None
    """Head of attention, of `qk` and `ov`."""
    component: str | None = None
    cross_attention: bool = False
    recognised: bool = True
    rows: int
    cols: int
    n_slices: int = 1
    """Matrices of rows x cols whose eigenvalues are pooled: 1, but for convolutions."""
    living_rows: int | None = None
    """Rows with a value above the storage noise; rho, z, square_alpha and the mp columns go by the living shape."""
    living_cols: int | None = None
    storage_dtype: str
    dequantized: bool = False
    parametrized: bool = False
    """True for a weight that is computed from other Parameters (weight norm, spectral norm, a pruning mask)."""
    status: Status
    tail: TailName
    alpha: float | None = None
    k: int | None = None
    xmin: float | None = None
    ks: float | None = None
    n_clipped: int | None = None
    se_iid: float | None = None
    alpha_error: float | None = None
    alpha_null: float | None = None
    rho: float | None = None
    z: float | None = None
    square_alpha: float | None = None
    square_rho: float | None = None
    square_status: SquareStatus | None = None
    """`ok`, or why there is no square_alpha; None where `status` says it: no finite values, all zero, failed."""
    gauge_shift: float | None = None
    """square_alpha of the balanced form less that of the stored one; None where it was not asked for or is unknown."""
    alpha_25: float | None = None
    alpha_50: float | None = None
    alpha_75: float | None = None
    pl_alpha: float | None = None
    pl_xmin: float | None = None
    pl_ks: float | None = None
    pl_k: int | None = None
    alpha_weighted: float | None = None
    log_alpha_norm: float | None = None
    log_norm: float | None = None
    spectral_norm: float | None = None
    frobenius_norm: float | None = None
    stable_rank: float | None = None
    effective_rank: float | None = None
    matrix_rank: int | None = None
    entropy: float | None = None
    mp_edge: float | None = None
    mp_spikes: int | None = None
    mp_softrank: float | None = None
    detx_k: int | None = None
    rand_spectral_norm: float | None = None
    rand_spikes: int | None = None
    best_law: LawName | Literal["undecided"] | None = None
    """The law that fits the tail of alpha best, `undecided` where the likelihood ratios do not tell."""
    power_law_p: float | None = None
    """p of the power law against the likeliest law; not calibrated, for eigenvalues are not independent."""
    llr_truncated: float | None = None
    """ln of the likelihood of the truncated power law over that of the power law."""
    llr_exponential: float | None = None
    llr_lognormal: float | None = None
    llr_mp: float | None = None
    """The same for a Marchenko-Pastur bulk with spikes."""
    n_eigenvalues: int = 0
    n_zero: int | None = None
    n_nonfinite: int = 0
    n_denormal: int = 0
    n_saturated: int = 0
    n_dead_rows: int = 0
    n_dead_cols: int = 0
    digest: str | None = None
    method: str
    compute_dtype: str

    @property
    def key(self) -> str:
        """The record's unique name: `name`, or `name[part]`."""
        return key(self.name, self.part)

    @property
    def balanced_alpha(self) -> float | None:
        """square_alpha of the balanced form; None where `gauge_shift` is."""
        if self.square_alpha is None or self.gauge_shift is None:
            return None
        return self.square_alpha + self.gauge_shift

    @property
    def balanced_rho(self) -> float | None:
        """square_rho of the balanced form, which has the shape of the stored one, and so its null."""
        if self.square_alpha is None or self.square_rho is None or self.gauge_shift is None:
            return None
        return self.square_rho * (1 + self.gauge_shift / (self.square_alpha - 1))

    @property
    def living_shape(self) -> tuple[int, int]:
        """Rows and columns that are not dead; the stored ones where these were not counted."""
        return self.living_rows or self.rows, self.living_cols or self.cols


def key(name: str, part: str | None) -> str:
    """The unique name of a matrix: the tensor's, with the part in brackets where there is one."""
    return name if part is None else f"{name}[{part}]"


def stored_role(role: AnyRole) -> Role:
    """Take the role of a stored matrix.

    Args:
        role: no role of a product, which rows of the function alone have.
    """
    assert role in ROLES
    return role


class Settings(Record, frozen=True, kw_only=True):
    """Options of the computation: with the weights, everything that a number depends on."""

    device: str = "cpu"
    method: Literal["gram", "svd"] = "gram"
    dtype: Literal["auto", "float32", "float64"] = "auto"
    """`auto`: float64, but float32 for storage that is coarser than its rounding. A record says which was used."""
    tail: TailName = "hill"
    tail_fraction: float = 0.5
    farms_rows: int | None = None
    """Rows of a window of the rule `farms`; None for the other rules."""
    farms_aspect: float | None = None
    """Columns over rows of a window."""
    farms_windows: int | None = None
    """Windows a dimension, at most."""
    randomize: bool = False
    """Compute the spectrum of each matrix with its entries permuted."""
    seed: int = 0
    fit_test: bool = False
    """Say which of several laws each tail follows."""
    function: bool = False
    """Measure what the weights compute too: QK, OV and DU."""
    experts: int | None = None
    """Experts sampled of each stack; None for all."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    roles: tuple[AnyRole, ...] = ()
    role_map: str | None = None


class RoleSummary(Record, frozen=True, kw_only=True):
    """A role of a family: medians and ranges over its matrices that have a value."""

    family: Family
    role: AnyRole
    n: int
    n_alpha: int
    """How many have an alpha."""
    parameters: int
    alpha: float | None = None
    alpha_min: float | None = None
    alpha_max: float | None = None
    alpha_null: float | None = None
    rho: float | None = None
    square_alpha: float | None = None
    square_alpha_min: float | None = None
    square_alpha_max: float | None = None
    square_alpha_null: float | None = None
    pl_alpha: float | None = None
    stable_rank: float | None = None


class Contrast(Record, frozen=True, kw_only=True):
    """MLP minus attention, per layer: positive where attention is heavier-tailed (has the smaller exponent)."""

    basis: Literal["alpha", "square_alpha", "rho"]
    """`square_alpha` and `rho` both take the shape out, with the covariance of the short side or the law of the
    singular values held fixed: a verdict needs both."""
    attention: Literal["all", "q,k", "v,o"]
    """Which attention roles are held against all MLP matrices of the same layer."""
    n_layers: int
    n_positive: int
    difference: float
    """Median over layers of mean MLP value - mean attention value."""
    low: float
    high: float
    """95 % bootstrap interval of that median, layers resampled."""
    p: float
    """Two-sided sign-flip test over layers as if they were independent. Neighbours are not: the true p is larger."""
    p_holm: float
    """`p` corrected by Holm over the three attention groups of this basis."""
    auc: float
    """Share of (attention, MLP) pairs of matrices in which the MLP has the larger exponent: 0.5 is no difference."""
    random_difference: float | None = None
    """The same median for random matrices of the same shapes; None for a tail rule that has no null."""
    random_n_positive: int | None = None
    random_p: float | None = None


class RoleLaws(Record, frozen=True, kw_only=True):
    """The laws that the tails of a role follow, by likelihood ratios added up over its matrices."""

    family: Family
    role: Role
    n: int
    """Matrices that were tested."""
    n_untested: int
    n_not_power_law: int
    """Matrices whose tail the ratios tell from a power law."""
    candidates: tuple[LawName, ...]
    """The likeliest law, and those that the ratios do not tell from it; one is the law that fits best."""
    llr: dict[LawName, float]
    """ln of the likelihood of each law over that of the power law, all matrices together."""


class MetricSummary(Record, frozen=True, kw_only=True):
    """A metric over all matrices of a report that have it."""

    n: int
    mean: float
    median: float


class Summary(Record, frozen=True, kw_only=True):
    """Summary of a report: coverage, roles, and the contrast of attention with MLP."""

    n_tensors: int
    n_parameters: int
    """Values that are parameters: what is known to be a buffer, a mask or a tied copy does not count."""
    n_matrices: int
    analysed_parameters: int
    skipped: dict[str, int]
    """Number of skipped tensors by reason."""
    statuses: dict[str, int]
    roles: tuple[RoleSummary, ...]
    contrasts: tuple[Contrast, ...]
    function: tuple[RoleSummary, ...] = ()
    """A row for each role of the function's matrices."""
    balance_sd: float | None = None
    """Standard deviation of square_alpha over attention and MLP matrices: what AlphaDecay reduces."""
    balance_range: float | None = None
    unrecognised: tuple[str, ...] = ()
    """Names that no role rule knew; analysed as `other`."""
    metrics: dict[str, MetricSummary] = {}
    """Each metric over all matrices, every one counted once, by its column; those that no matrix has are left out."""
    laws: tuple[RoleLaws, ...] = ()
    """A row for each role where the fit test was asked for."""


class Provenance(Record, frozen=True, kw_only=True):
    """How the numbers came about."""

    created: str
    versions: dict[str, str]
    platform: str
    device: str
    device_name: str
    jobs: int
    seconds: float
    peak_bytes: int
    """Peak resident memory of the process."""
    device_difference: float | None = None
    """Largest relative difference of an upper eigenvalue between the accelerator and the CPU in float64."""
    processes: int = 1
    """How many shared the work; the others of these figures are the first one's."""
    n_cached: int = 0
    """Matrices whose numbers an earlier analysis had kept."""
    kernels: tuple[str, ...] = ()
    """BLAS kernels, processor and eigensolvers, on which the last bits of a number depend."""
    fingerprint: str | None = None
    """Sizes and times of the local files that were read."""
    notes: tuple[str, ...] = ()
    architecture: str | None = None
    spectra_digest: str | None = None
    """SHA-256 of the eigenvalue file beside the report."""
