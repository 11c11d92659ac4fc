"""The fingerprint of a model: the spectra of all blocks whose wiring is known, measured a part of a block at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod

import numpy as np

from specdiag.analysis.batches import Unit, units
from specdiag.checkpoint.tensors import WeightMatrix
from specdiag.errors import UsageError
from specdiag.function.arrays import Array
from specdiag.kinship.spectra import BlockSpectra, MlpSpectra, NotFiniteError, Solver
from specdiag.records import ModuleRole
from specdiag.resources import available_cpus, format_size, total_memory
from specdiag.system.blas_threads import OneBlasThread

_TRUNK = (None, "text")
_HEADS = ("qk", "ov")

Place = tuple[str | None, int | None]
"""Component and index of a layer."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The spectra of a model.

    Attributes:
        blocks: those with attention, in stored order.
        problem: the reason why there are none that can be compared; None where there are.
    """

    blocks: tuple[BlockSpectra, ...]
    problem: str | None = None


@dataclass(slots=True)
class _Found:
    """The spectra of a block so far: heads by role, MLPs by expert and role."""

    heads: dict[str, Array] = field(default_factory=dict[str, Array])
    mlps: dict[str, dict[str, Array]] = field(default_factory=lambda: defaultdict(dict))


def take_fingerprint(
    rows: Iterable[WeightMatrix],
    solver: Solver,
    *,
    scaled: bool,
    jobs: int | None = None,
    memory: int | None = None,
    done: Callable[[WeightMatrix], None] | None = None,
) -> Fingerprint:
    """Measure the matrices of a model's function.

    Args:
        rows: of the function.
        solver: of singular values.
        scaled: whether the scale of the residual stream is free.
        jobs: worker threads; None for the processors that are available.
        memory: bytes that the workers may use together; None for half of the machine's.
        done: called after each matrix.

    Raises:
        UsageError: the largest matrix does not fit into the memory that is allowed.
        SourceError: a tensor cannot be read.
    """
    work = [u for u in units(rows) if u.matrices[0].module.role != "router"]
    found: dict[Place, _Found] = defaultdict(_Found)
    with OneBlasThread() as blas, ThreadPoolExecutor(_workers(work, jobs, memory), "specdiag") as pool:
        running = [pool.submit(blas.within, lambda u=u: _measure(u, solver)) for u in work]
        try:
            for unit, future in zip(work, running, strict=True):
                first = unit.matrices[0]
                module = first.module
                _keep(
                    found[place(module.component, module.layer, is_cross=module.cross_attention)],
                    module,
                    future.result(),
                )
                if done is not None:
                    done(first)
        except NotFiniteError as error:
            return Fingerprint((), f"{error} holds values that are infinite or NaN")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    blocks = tuple(_spectra(place, f, scaled=scaled) for place, f in found.items() if f.heads.keys() >= {*_HEADS})
    return Fingerprint(blocks, None if blocks else "no attention was found whose wiring is known")


def place(component: str | None, layer: int | None, *, is_cross: bool = False) -> Place:
    """Name a layer, the trunk of a language model None in every format, and cross-attention apart.

    Args:
        component: the piece of the model.
        layer: its index.
        is_cross: whether it is the layer's cross-attention.
    """
    piece = None if component in _TRUNK else component
    return f"{piece or 'text'} cross-attention" if is_cross else piece, layer


def _measure(unit: Unit, solver: Solver) -> Array:
    first = unit.matrices[0]
    values = np.asarray(unit.tensor.read(unit.index))
    if not np.isfinite(values).all():
        raise NotFiniteError(first.name)
    if first.module.role in _HEADS:
        return solver.of_heads(values)
    return solver.of_matrix(first.slicer.cut(values)[0])


def _keep(found: _Found, module: ModuleRole, sigma: Array) -> None:
    if module.role in _HEADS:
        found.heads[module.role] = sigma
    else:
        expert = (module.part or "").partition(".")[0] if "expert" in (module.part or "") else ""
        found.mlps[expert][module.role] = sigma


def _spectra(place: Place, found: _Found, *, scaled: bool) -> BlockSpectra:
    mlps: list[Mapping[str, Array]] = list(found.mlps.values())
    component, layer = place
    alike: list[MlpSpectra] = [m for m in mlps if m.keys() == mlps[0].keys()]
    return BlockSpectra(component, layer, found.heads["qk"], found.heads["ov"], tuple(alike), scaled)


def _workers(work: Sequence[Unit], jobs: int | None, memory: int | None) -> int:
    """Count the workers whose largest units fit into memory together."""

    def need(unit: Unit) -> int:
        return unit.tensor.scratch + 4 * 8 * prod(unit.tensor.shape)

    largest = max(work, key=need, default=None)
    if largest is None:
        return 1
    budget = memory or total_memory() // 2
    if need(largest) > budget:
        raise UsageError(
            f"{largest.tensor.name} needs about {format_size(need(largest))} and memory= allows {format_size(budget)}: "
            "allow more"
        )
    return max(1, min(jobs or available_cpus(), budget // need(largest), len(work)))
