"""Options that several commands share: one definition, one help text, and one table of which command takes which."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import NUMBERS, RESOURCES, SELECTION, SOURCE, DType, Method, Tail, parse_size

SHARED: dict[str, tuple[Any, Any]] = {
    "revision": (
        Annotated[str | None, typer.Option(
            "--revision", help="Branch, tag or commit of a hub repository.", rich_help_panel=SOURCE)], None),
    "file": (
        Annotated[str | None, typer.Option(
            "--file", help="Weight file within the repository or directory, or a glob of shards.",
            rich_help_panel=SOURCE)], None),
    "part": (
        Annotated[str | None, typer.Option(
            "--part", metavar="NAME", help="Model to take from a file that holds several, such as ema_model.",
            rich_help_panel=SOURCE)], None),
    "base": (
        Annotated[str | None, typer.Option(
            "--base", metavar="MODEL", help="Base model of an adapter, to read W + delta.", rich_help_panel=SOURCE)],
        None),
    "stream": (
        Annotated[bool, typer.Option(
            "--stream", help="Read a hub repository by ranges and write nothing to disk.", rich_help_panel=SOURCE)],
        False),
    "role_map": (
        Annotated[Path | None, typer.Option(
            "--role-map", metavar="FILE", help="TOML file with roles and wiring that specdiag does not know.",
            rich_help_panel=SOURCE)], None),
    "experts": (
        Annotated[int | None, typer.Option(
            "--experts", min=1, help="Sample this many experts of each stack (seeded).", rich_help_panel=SOURCE)],
        None),
    "include": (
        Annotated[list[str] | None, typer.Option(
            "--include", metavar="GLOB", help="Take only matrices whose name matches; repeatable.",
            rich_help_panel=SELECTION)], None),
    "exclude": (
        Annotated[list[str] | None, typer.Option(
            "--exclude", metavar="GLOB", help="Leave out matrices whose name matches; repeatable.",
            rich_help_panel=SELECTION)], None),
    "role": (
        Annotated[list[str] | None, typer.Option(
            "--role", metavar="ROLE", help="Take only this role (q, k, v, o, gate, up, down, ...); repeatable.",
            rich_help_panel=SELECTION)], None),
    "dtype": (
        Annotated[DType, typer.Option(
            "--dtype", help="Arithmetic; auto: float64, and float32 where storage is coarse or float64 slow.",
            rich_help_panel=NUMBERS)],
        DType.auto),
    "method": (
        Annotated[Method, typer.Option(
            "--method", help="gram is fast; svd computes singular values directly.",
            rich_help_panel=NUMBERS)], Method.gram),
    "tail": (
        Annotated[Tail, typer.Option(
            "--tail", help="Tail rule for alpha. pl_alpha (KS fit) is always reported too.",
            rich_help_panel=NUMBERS)], "hill"),
    "tail_fraction": (
        Annotated[float, typer.Option(
            "--tail-fraction", help="Share of eigenvalues in the tail.", rich_help_panel=NUMBERS)], 0.5),
    "farms_rows": (
        Annotated[int | None, typer.Option(
            "--farms-rows", min=1, help="Rows of a window of --tail farms.", show_default="2000",
            rich_help_panel=NUMBERS)], None),
    "farms_aspect": (
        Annotated[float | None, typer.Option(
            "--farms-aspect", help="Columns over rows of a window.", show_default="1", rich_help_panel=NUMBERS)], None),
    "farms_windows": (
        Annotated[int | None, typer.Option(
            "--farms-windows", min=1, max=1000, help="Most windows per dimension.", show_default="10",
            rich_help_panel=NUMBERS)], None),
    "randomize": (
        Annotated[bool, typer.Option(
            "--randomize", help="Also analyse shuffled entries, to find correlation traps (twice the work).",
            rich_help_panel=NUMBERS)], False),
    "fit_test": (
        Annotated[bool, typer.Option(
            "--fit-test", help="Test which law each tail follows: power law, lognormal, noise or others.",
            rich_help_panel=NUMBERS)], False),
    "function": (
        Annotated[bool, typer.Option(
            "--function", help="Also measure QK, OV and DU: products that do not depend on the form of storage.",
            rich_help_panel=NUMBERS)], False),
    "seed": (
        Annotated[int, typer.Option(
            "--seed", min=0, help="Seed of expert sampling and permutation.", rich_help_panel=NUMBERS)], 0),
    "device": (
        Annotated[str, typer.Option(
            "--device", help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=RESOURCES)], "auto"),
    "jobs": (
        Annotated[int | None, typer.Option(
            "--jobs", min=1, help="Worker threads.", show_default="available processors",
            rich_help_panel=RESOURCES)], None),
    "memory": (
        Annotated[int | None, typer.Option(
            "--memory", parser=parse_size, metavar="SIZE", help="Memory of all workers together, such as 8G.",
            show_default="half of the machine's", rich_help_panel=RESOURCES)], None),
    "cache": (
        Annotated[bool, typer.Option(
            "--cache/--no-cache", help="Reuse results of equal tensors, and keep new ones.",
            rich_help_panel=RESOURCES)], True),
}  # fmt: skip
"""Each shared option with its default, by the name of its parameter."""

_RUN = ("part", "base", "role_map", "experts", "seed")
_SOURCE = ("revision", "file", "stream", *_RUN)
_MATRICES = ("include", "exclude", "role")
_TAIL = ("tail", "tail_fraction", "farms_rows", "farms_aspect", "farms_windows")
_MEANS = ("device", "jobs", "memory", "cache")

TAKES: dict[str, tuple[str, ...]] = {
    "analyze": tuple(SHARED),
    "audit": (*_SOURCE, *_MATRICES, "dtype", "randomize", *_MEANS),
    "compare": (*_SOURCE, *_MATRICES, "dtype", *_TAIL, "function", *_MEANS),
    "lineage": ("part", "base", "stream", "role_map", *_MEANS),
    "recommend": (*_SOURCE, *_MATRICES, "dtype", "function", *_MEANS),
    "plot": (*_SOURCE, "include", "role", "dtype", *_MEANS),
    "report": (*_SOURCE, "dtype", "function", *_MEANS),
    "reference": ("stream", "experts", "seed", *_MEANS),
    "trajectory": (*_RUN, "stream", *_MATRICES, "dtype", *_TAIL, "function", *_MEANS),
    "watch": (*_RUN, *_MATRICES, "dtype", *_MEANS),
}
"""Which command takes which. A run has several checkpoints: `--revision` and `--file` would pick one."""
