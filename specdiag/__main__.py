"""`python -m specdiag`."""

from specdiag_cli.main import run

run()
