"""`python -m specdiag`."""

from specdiag_cli.entry import run  # pyright: ignore[reportMissingImports] - not to be seen in an editable install

run()
