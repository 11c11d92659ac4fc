"""A run over its steps: its checkpoints, their spectra, and what changed between them."""
