"""`python -m cli` from a clone."""

from .entry import run

run()
