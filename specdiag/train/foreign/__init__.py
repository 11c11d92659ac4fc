"""Checkpoints of other programs, which a Trainer continues with the moments of their optimizers."""
