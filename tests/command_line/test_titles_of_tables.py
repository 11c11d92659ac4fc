"""The title of a table explains the columns that it shows, and no others."""

from io import StringIO

from rich.console import Console
from specdiag_cli.tables import draw

from specdiag.views.columns import Column


def test_a_column_that_is_left_out_is_not_explained():
    columns = [
        Column("name", lambda r: r[0], right=False),
        Column("noise sd", lambda r: r[1], drop=4),
    ]
    titles = {}
    for width in (80, 30):
        out = StringIO()
        rows = [("a" * 26, "0.011")]
        table = draw("Roles (means)", columns, rows, width, about={"noise sd": "noise sd: between random matrices"})
        Console(file=out, width=width).print(table)
        titles[width] = out.getvalue().splitlines()[0].strip()
    assert titles == {80: "Roles (means; noise sd: between random matrices)", 30: "Roles (means)"}
