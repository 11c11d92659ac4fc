"""Models and optimizers in memory: their parameters, groups, matrices and decay."""
