"""Limits that pages and sentences name too: the measurements themselves load NumPy and SciPy."""

MIN_EIGENVALUES = 50
"""A matrix of fewer has metrics and no exponent, as in the AlphaDecay reference."""
MIN_TESTED_POINTS = 50
"""The fit test says nothing of a tail of fewer."""
UNTOUCHED_SCORE = 0.5
"""Score above which a row counts as untouched: Land and Bartolo's figures separate there. A choice."""
