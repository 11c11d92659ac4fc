"""The fewest points that a fit takes. Pages and sentences ask here: the fits themselves load SciPy."""

MIN_EIGENVALUES = 50
"""A matrix of fewer has metrics and no exponent, as in the AlphaDecay reference."""
MIN_TESTED_POINTS = 50
"""The fit test says nothing of a tail of fewer."""
