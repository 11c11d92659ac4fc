"""Columns of tables: one definition for the terminal and the page."""

import re

import pytest
from command import invoke
from rich.console import Console
from specdiag_cli import tables as terminal

import specdiag
from specdiag.views import columns
from specdiag.views.html import tables as page


@pytest.fixture(scope="module")
def report(noise):
    return specdiag.analyze({f"layers.{i}.{n}.weight": noise(64, 96) for i in range(3) for n in ("q_proj", "up_proj")})


@pytest.fixture(scope="module")
def noise():
    import torch

    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(shape, generator=generator)


def lines(table):
    """The cells of each line below the title, where none is empty or holds two blanks."""
    return [re.split(r" {2,}", line.plain.strip()) for line in table.renderables[1:]]


def heads(table):
    return lines(table)[0]


def cells(table):
    return [list(column) for column in zip(*lines(table)[1:], strict=True)]


def test_terminal_and_page_have_the_same_columns_and_cells(report):
    records, links = report.records, {r.key: f"m{i}" for i, r in enumerate(report)}
    plan = specdiag.recommend(report, weight_decay=0.1)
    for here, there in (
        (terminal.record_table(records, "", 500), page.record_table(records, links)),
        (terminal.role_table(report.summary.roles, 500), page.role_table(report.summary.roles)),
        (terminal.contrast_table(report.summary.contrasts, 500), page.contrast_table(report.summary.contrasts)),
        (terminal.draw("", columns.plan_columns(plan), plan.entries, 500), page.plan_table(plan, {})),
    ):
        assert heads(here) == [head.text for head in there.heads]
        assert cells(here) == [[row[i].text for row in there.rows] for i in range(len(there.heads))]
    assert [row[0].link for row in page.record_table(records, links).rows] == list(links.values())


def test_columns_of_one_name_keep_their_own_cells(report):
    found = page.role_table(report.summary.roles)
    names = [head.text for head in found.heads]
    assert names.count("null") == 2
    first, second = (i for i, name in enumerate(names) if name == "null")
    assert [row[first] for row in found.rows] != [row[second] for row in found.rows]
    here = terminal.role_table(report.summary.roles, 500)
    assert cells(here)[first] != cells(here)[second]


def test_empty_columns_are_left_out_and_narrow_tables_drop_the_least_needed(report):
    bare = specdiag.analyze({f"layers.{i}.q_proj.weight": w for i, w in enumerate([report_weight(40)] * 2)})
    assert "square_alpha" not in heads(terminal.record_table(bare.records, "", 500))
    narrow = terminal.record_table(report.records, "", 80)
    assert {"matrix", "role", "alpha", "square_alpha"} <= set(heads(narrow))
    assert not {"layer", "sigma_max"} & set(heads(narrow))
    console = Console(width=80)
    with console.capture() as captured:
        console.print(narrow)
    assert max(map(len, captured.get().splitlines())) <= 80


def report_weight(n):
    import torch

    return torch.randn((n, n), generator=torch.Generator().manual_seed(n))


def test_shapes_sort_by_their_size(report):
    found = page.record_table(report.records, {r.key: "m" for r in report})
    at = [head.text for head in found.heads].index("shape")
    assert {row[at].order for row in found.rows} == {64 * 96}


def test_the_plan_of_the_terminal_is_that_of_the_page(report, tmp_path):
    report.save(tmp_path / "r.json")
    result = invoke("recommend", tmp_path / "r.json", "--weight-decay", "0.1")
    assert result.exit_code == 0, result.output
    names = [column.head for column in columns.plan_columns(specdiag.recommend(report, weight_decay=0.1))]
    line = next(line for line in result.stdout.splitlines() if line.startswith("Parameter"))
    shown = re.split(r"  +", line.strip())
    assert shown == [name for name in names if name in shown]
    assert {"Parameter", "ratio", "weight decay"} <= set(shown)
