"""The records of what weights alone say of a model's outputs: removed directions, massive channels, bounds."""

from __future__ import annotations

from specdiag.records import Record


class WriterRatio(Record, frozen=True, kw_only=True):
    """The lowest direction of a matrix that writes to the stream, in balance."""

    key: str
    """Name of the stored matrix."""
    component: str | None = None
    layer: int | None = None
    ratio: float | None = None
    """Lowest eigenvalue of G over the next; None where the matrix is not wide (1.5 columns a row)."""
    n_directions: int
    """Directions below the largest gap among the lowest ten eigenvalues."""
    shared: float | None = None
    """Share of that direction in the matrix of all others that has the least of it, over its second eigenvalue."""
    shared_with: str | None = None
    """Key of that other matrix."""
    layers: tuple[int, ...] = ()
    """Layers in which a matrix has less than half its second eigenvalue in that direction."""


class WindowRatio(Record, frozen=True, kw_only=True):
    """The lowest direction of the mean of G over layers."""

    component: str | None = None
    first: int
    last: int
    n_matrices: int
    is_whole: bool
    """True for all layers of the stream."""
    ratio: float
    n_directions: int
    layers: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """Place in words, under which its directions are saved."""
        where = f"layers {self.first} to {self.last}"
        return where if self.component is None else f"{self.component} {where}"


class Channel(Record, frozen=True, kw_only=True):
    """A coordinate of the stream that the down projections of all layers write to far more than to the others."""

    component: str | None = None
    channel: int
    size: float
    """Norm of its row over all down projections, over the median of the rows."""


class OutputRange(Record, frozen=True, kw_only=True):
    """The largest absolute value that the outputs of a matrix can take, for any input."""

    key: str
    """Name of the stored matrix, or of a norm."""
    role: str
    """`q`, `k`, `v`, `o`, `gate`, `up`, `down`, `router`; `into down` for what enters the down projection."""
    component: str | None = None
    layer: int | None = None
    dtype: str | None = None
    """Type in which the outputs are computed, where config or storage say it: `F16`, `BF16`, `F32`."""
    bound: float
    """Proven: no output exceeds it."""
    row: int
    """Output that has it."""
    least: float = 0.0
    """Proven: the largest output of the matrix is at least so large, for any input."""


class ScoreBound(Record, frozen=True, kw_only=True):
    """The largest absolute value that the attention scores of a head can take, for any text."""

    key: str
    """Path of the attention."""
    component: str | None = None
    layer: int | None = None
    head: int
    bound: float
    """At all positions."""
    at_positions: float | None = None
    """At some positions of the key, 0 to 511 before the query; None where it is not computed."""


class Alarms(Record, frozen=True, kw_only=True):
    """Figures that weights alone give of a model's outputs."""

    writers: tuple[WriterRatio, ...] = ()
    windows: tuple[WindowRatio, ...] = ()
    channels: tuple[Channel, ...] = ()
    ranges: tuple[OutputRange, ...] = ()
    scores: tuple[ScoreBound, ...] = ()
    notes: tuple[str, ...] = ()
    """Sentences on blocks and matrices that are left out, each with its reason."""
