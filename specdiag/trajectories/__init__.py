"""A run over its steps: which checkpoints there are, their spectra one after the other, and what moved."""
