"""`python -m cli` from a clone."""

from .main import run

run()
